// The official JavaScript SDK asks for answers that take long, all at once: prints what it got as JSON.

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, url] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(createRequire(`${folder}/`).resolve('openai')));
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 2 });
const chat = (content) => client.chat.completions.create({ model: 'slow', messages: [{ role: 'user', content }] });
const [response, failed, completion, refused] = await Promise.all([
  client.responses.create({ model: 'slow', input: 'hello' }),
  client.responses.create({ model: 'slow', input: 'fail' }),
  chat('hello'),
  chat('fail'),
]);
console.log(
  JSON.stringify([
    response.output_text,
    [failed.status, failed.error?.code],
    completion.choices[0].message.content,
    [refused.choices[0].finish_reason, refused.error?.code],
  ]),
);
