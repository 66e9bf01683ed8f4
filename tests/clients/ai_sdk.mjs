// The AI SDK as the client of a server whose agent runs a tool itself: one line of JSON for each case, as
// python_clients.py prints them. Run it with a folder that has `ai`, `@ai-sdk/openai` and `zod`, an address,
// and what to call this version.

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, url, client] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(createRequire(`${folder}/`).resolve(name)));
const { generateText, streamText, stepCountIs, isStepCount, tool } = await load('ai');
const { createOpenAI } = await load('@ai-sdk/openai');
const { z } = await load('zod');
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: 'none' });

let runs = 0;
const clock = tool({
  description: 'Tells the time.',
  inputSchema: z.object({}),
  execute: async () => {
    runs += 1;
    return '12:00';
  },
});

async function ask(stream, options) {
  if (!stream) {
    const { text, response, responseMessages } = await generateText(options);
    return [text, responseMessages ?? response.messages];
  }
  let failure;
  const result = streamText({ ...options, onError: ({ error }) => (failure = error) });
  const text = await result.text;
  if (failure) throw failure;
  return [text, (await result.responseMessages) ?? (await result.response).messages];
}

for (const wire of ['chat', 'responses']) {
  for (const stream of [false, true]) {
    for (const own of [false, true]) {
      const line = { case: `${client} ${wire} ${stream ? 'stream' : 'whole'} ${own ? 'own' : 'none'}` };
      runs = 0;
      const model = openai[wire]('weather');
      const tools = own ? { clock } : {};
      const options = { model, tools, maxRetries: 0, stopWhen: (stepCountIs ?? isStepCount)(5) };
      try {
        const messages = [{ role: 'user', content: line.case }];
        const [text, said] = await ask(stream, { ...options, messages });
        messages.push(...said, { role: 'user', content: 'recall' });
        const [told] = await ask(stream, { ...options, messages });
        Object.assign(line, { text, told });
      } catch (error) {
        line.error = `${error.stack} ${error.cause ?? ''} ${error.responseBody ?? ''}`.slice(0, 3000);
      }
      console.log(JSON.stringify({ ...line, runs }));
    }
  }
}
