/**
 * What travels between the server and its clients: types only, no code. Fields that a newer server adds are not here,
 * and do no harm.
 *
 * @typedef {object} Session
 * @property {string} id
 * @property {string} title
 * @property {string} createdAt RFC 3339
 * @property {string} updatedAt RFC 3339
 * @property {number} userMessageCount
 * @property {number} assistantMessageCount
 * @property {boolean} running whether an answer is being written
 * @property {string} [firstUserMessage]
 * @property {string} [agent]
 * @property {string} [parentSessionId]
 * @property {string} [owner] whose it is, if another's
 * @property {string} [you] who asks, where the server knows that; not in lists
 * @property {string[]} [may] of `send`, `cancel`, `answer`, `change`: what may be done to it, if it is another's or not all
 *
 * @typedef {object} StoredMessage
 * @property {string} id
 * @property {string} sessionId
 * @property {"user" | "assistant"} role
 * @property {string} userInput the text, whatever the role
 * @property {string} [assistantResponse]
 * @property {string} [reasoning]
 * @property {{id: string, name: string, input: string, finished: boolean, result?: string, isError?: boolean}[]} [toolCalls]
 * @property {Record<string, any>[]} [parts] everything that an assistant's message said, in order
 * @property {string} [status]
 * @property {{code: string, message: string}} [error] of an answer that failed
 * @property {string} [runId]
 * @property {string} [author] of a user's message: who wrote it, where the server knows who asks
 * @property {Attachment[]} [files] what came with a user's message
 * @property {string} [createdAt]
 *
 * @typedef {object} Attachment a file of a message
 * @property {string} [type] such as `image/png`
 * @property {string} [name]
 * @property {number} [bytes]
 * @property {string} [hash] it is to be had at `api/sessions/{id}/blobs/{hash}`
 * @property {string} [url] its address, or all of it, if it has no `hash`
 *
 * @typedef {object} Sent
 * @property {string} status
 * @property {string} sessionId
 * @property {string} runId
 * @property {string} messageId
 * @property {string} cursor a stream with this `lastEventId` has the answer from its start
 *
 * @typedef {{assistantMessageId?: string, part?: number, parentToolCallId?: string}} Place where in an answer it stands
 * @typedef {Place & {content: string, start?: number}} Delta a piece of text, and its place in the part in code points
 *
 * @typedef {object} StreamEvents each event's data, by its name
 * @property {{sessionId: string, cursor?: "exact" | "reset", earliest?: number, latest?: number}} connected
 * @property {{sessionId: string, title: string, createdAt: number}} session_created
 * @property {{}} session_deleted
 * @property {{to: string}} session_rewound
 * @property {{messageId: string, content: string, runId?: string, author?: string, files?: Attachment[]}} user_message_created
 * @property {{runId: string, for: string}} run_waiting
 * @property {{runId: string, agent?: string, attempt?: number}} run_started
 * @property {Delta} thinking
 * @property {Delta} content
 * @property {Place & {id: string, name: string}} tool_use_start
 * @property {Place & {toolCallId: string, input: string, start?: number}} tool_use_parameter_delta
 * @property {Place & {id: string, name: string, input: string}} tool_use_parameter_streaming_complete
 * @property {{toolCallId: string, toolName: string, progress: string}} tool_execution_start
 * @property {{toolCallId: string, toolName: string, progress: string, success: boolean, output?: any}} tool_execution_complete
 * @property {{id: string, sessionId: string, toolName: string, description: string, action: string, path?: string, params?: Record<string, any>, expiresAt?: number, runId?: string}} permission
 * @property {{id: string, granted: boolean, by?: string}} permission_resolved
 * @property {{id: string, sessionId: string, notificationType: "info" | "warning" | "error" | "question", title: string, message: string, responseType: "acknowledge" | "text" | "choice", timeout: number, createdAt: number, choices?: string[], runId?: string}} notification
 * @property {{id: string, responseType?: string, value?: any, by?: string}} notification_resolved
 * @property {{runId: string}} cancel_requested
 * @property {{done: true, runId: string, content?: string, messageId?: string, reasoning?: string, finishReason?: string, usage?: Record<string, any>}} complete
 * @property {{error: string, type?: string, runId?: string}} error
 *
 * @typedef {{[Name in keyof StreamEvents]: {event: Name, data: StreamEvents[Name], id: string}}[keyof StreamEvents]} StreamEvent
 *   an event, told apart by `event`; skip names that you do not know, a newer server may have more
 *
 * @typedef {object} Message of a thread, as Deva's pages have it
 * @property {string} id
 * @property {string} text
 * @property {string} persona_id
 * @property {string} thread_id
 * @property {number | string} created_at
 * @property {"USER" | "BOT" | "SYSTEM"} author_type
 */
export {};
