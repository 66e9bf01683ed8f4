// The official JavaScript SDK as the client of a server whose agent runs a tool itself, by its helpers: `runTools`,
// `chat.completions.stream` and `responses.stream`. One line of JSON for each case, as python_clients.py prints them.

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, url] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(createRequire(`${folder}/`).resolve('openai')));
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const model = 'weather';
const parameters = { type: 'object', properties: {} };
const again = { role: 'user', content: 'recall' };

let runs = 0;
const clock = () => {
  runs += 1;
  return '12:00';
};

async function chat(stream, own, said) {
  const run = async (messages) => {
    const body = { model, messages, stream };
    const tool = { type: 'function', function: { name: 'clock', parameters, parse: JSON.parse, function: clock } };
    const runner = own || !stream
      ? client.chat.completions.runTools({ ...body, tools: own ? [tool] : [] })
      : client.chat.completions.stream(body);
    await runner.done();
    return [await runner.finalContent(), runner.messages];
  };
  const [text, messages] = await run([{ role: 'user', content: said }]);
  return { text, told: (await run([...messages, again]))[0] };
}

async function responses(stream, own, said) {
  const tools = own ? [{ type: 'function', name: 'clock', parameters, strict: false }] : [];
  const run = async (input) => {
    for (;;) {
      const body = { model, input, tools };
      const answer = stream ? await client.responses.stream(body).finalResponse() : await client.responses.create(body);
      const calls = answer.output.filter((item) => item.type === 'function_call');
      if (calls.some((call) => call.name !== 'clock')) throw new Error(`asked to run ${JSON.stringify(calls)}`);
      const outputs = calls.map((call) => ({ type: 'function_call_output', call_id: call.call_id, output: clock() }));
      input = [...input, ...answer.output, ...outputs];
      if (!calls.length) return [answer.output_text, input];
    }
  };
  const [text, items] = await run([{ role: 'user', content: said }]);
  return { text, told: (await run([...items, again]))[0] };
}

for (const [wire, play] of Object.entries({ chat, responses })) {
  for (const stream of [false, true]) {
    for (const own of [false, true]) {
      const line = { case: `openai-node ${wire} ${stream ? 'stream' : 'whole'} ${own ? 'own' : 'none'}` };
      runs = 0;
      try {
        Object.assign(line, await play(stream, own, line.case));
      } catch (error) {
        line.error = `${error.stack}`.slice(0, 3000);
      }
      console.log(JSON.stringify({ ...line, runs }));
    }
  }
}
