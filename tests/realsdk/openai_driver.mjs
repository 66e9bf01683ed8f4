// The official JavaScript SDK against a server: prints what it saw as JSON. Run it in a folder that has the package.

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, url] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(createRequire(`${folder}/`).resolve('openai')));
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const model = 'scripted';

async function collect(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

const seen = {};
const whole = await collect(await client.responses.create({ model, input: 'tools', stream: true, background: true }));
const id = whole[0].response.id;
seen.numbers = whole.map((event) => event.sequence_number);
seen.text = whole.filter((event) => event.type === 'response.output_text.delta').map((event) => event.delta).join('');
seen.resumed = [];
for (const after of seen.numbers) {
  const rest = await collect(await client.responses.retrieve(id, { stream: true, starting_after: after }));
  seen.resumed.push(JSON.stringify(rest) === JSON.stringify(whole.slice(after + 1)));
}

const helper = client.responses.stream({ model, input: 'hello' });
seen.helper = (await helper.finalResponse()).output_text;

try {
  await collect(await client.responses.create({ model, input: 'fail', stream: true }));
} catch (error) {
  seen.failed = [error instanceof OpenAI.APIError, error.code];
}
try {
  await client.responses.retrieve('resp_none');
} catch (error) {
  seen.lost = [error instanceof OpenAI.NotFoundError, error.code];
}

const running = await client.responses.create({ model, input: 'forever', background: true });
seen.cancelled = (await client.responses.cancel(running.id)).status;

const chunks = await collect(
  await client.chat.completions.create({
    model,
    messages: [{ role: 'user', content: 'hello' }],
    stream: true,
    stream_options: { include_usage: true },
  }),
);
seen.chat = [chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join(''), chunks.at(-1).usage.total_tokens];

const conversation = await client.conversations.create({
  metadata: { topic: 'x' },
  items: [{ type: 'message', role: 'user', content: 'before' }],
});
await client.responses.create({ model, input: 'tools', conversation: conversation.id });
await client.conversations.items.create(conversation.id, {
  items: [{ type: 'message', role: 'assistant', content: 'after' }],
});
const items = [];
for await (const item of client.conversations.items.list(conversation.id, { order: 'asc', limit: 2 })) items.push(item);
const [first] = items;
await client.conversations.items.delete(first.id, { conversation_id: conversation.id });
try {
  await client.conversations.items.retrieve(first.id, { conversation_id: conversation.id });
} catch (error) {
  seen.deleted = [error instanceof OpenAI.NotFoundError, error.code];
}
seen.items = items.map((item) => item.type);
seen.one = (await client.conversations.items.retrieve(items[1].id, { conversation_id: conversation.id })).id === items[1].id;
await client.conversations.update(conversation.id, { metadata: { topic: 'y' } });
seen.metadata = (await client.conversations.retrieve(conversation.id)).metadata;
seen.gone = (await client.conversations.delete(conversation.id)).deleted;
console.log(JSON.stringify(seen));
