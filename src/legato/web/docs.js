/** The API reference: `openapi.json` as a page. All of it is text; nothing of the document becomes markup. */

/** @typedef {Record<string, any>} Json */

/** @param {string} name @param {Record<string, string>} attributes @param {(Node | string | null)[]} children */
function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

const METHODS = ["get", "post", "put", "patch", "delete", "head", "options"];

/** Text with its `code` in backticks. @param {string} source */
const text = (source = "") =>
  source.replace(/``/g, "`").split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part)).filter((part) => part !== "");

const short = (reference) => reference.split("/").pop();
const anchor = (kind, name) => `${kind}-${name.replace(/[^\w]+/g, "-")}`;

/** What a schema is, in a few words and with links. @param {Json} schema @returns {(Node | string)[]} */
function type(schema = {}) {
  if (schema.$ref) return [h("a", { href: `#${anchor("schema", short(schema.$ref))}` }, short(schema.$ref))];
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return several.flatMap((each, index) => (index ? [" or ", ...type(each)] : type(each)));
  if (schema.enum) return [schema.enum.map((each) => JSON.stringify(each)).join(" | ")];
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.type === "array") return schema.items && Object.keys(schema.items).length > 0 ? ["array of ", ...type(schema.items)] : ["array"];
  const bounds = [
    schema.minimum !== undefined && `≥ ${schema.minimum}`,
    schema.maximum !== undefined && `≤ ${schema.maximum}`,
    schema.maxLength !== undefined && `at most ${schema.maxLength.toLocaleString("en")} characters`,
    schema.pattern,
  ].filter(Boolean);
  return [[schema.type ?? "any JSON", schema.format && `(${schema.format})`, ...bounds].filter(Boolean).join(", ").replace(", (", " (")];
}

/** Of what a stream's frames are made, where the document says it. @param {Json} schema */
function items(schema = {}) {
  const data = schema.properties?.data ?? {};
  const content = [data, ...(data.anyOf ?? [])].map((each) => each.contentSchema).find((each) => each?.$ref);
  return content ? [" of ", ...type(content)] : [];
}

/** @param {string[]} heads @param {(Node | string | (Node | string)[])[][]} rows */
function table(heads, rows) {
  return h("div", { class: "wide-table", tabindex: "0", role: "group", "aria-label": heads.join(", ") },
    h("table", {},
      h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, ...[cell].flat())))))));
}

/** What a docstring says of each attribute ("Attributes:", then indented "name, other: what"). @param {string} source */
function attributes(source = "") {
  /** @type {Json} */
  const found = {};
  const lines = (source.split(/\n\s+Attributes:\n/)[1] ?? "").split("\n");
  let names = [];
  for (const line of lines) {
    const match = /^\s+([\w, ]+): (.*)$/.exec(line);
    if (match) names = match[1].split(", ").map((name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase()));
    for (const name of names) found[name] = match ? match[2] : `${found[name]} ${line.trim()}`;
  }
  return found;
}

/** @param {Json} schema */
function fields(schema) {
  const said = attributes(schema.description);
  const required = new Set(schema.required ?? []);
  return table(["Field", "Type", ""], Object.entries(schema.properties).map(([name, field]) => [
    [h("code", {}, name), required.has(name) ? " *" : ""],
    type(field),
    [...text(field.description ?? said[name]), "default" in field && field.default !== null && field.default !== ""
      ? h("span", { class: "fine" }, ` Default: ${JSON.stringify(field.default)}`) : ""],
  ]));
}

/** An example of a schema, as small as it can be: its required fields. @param {Json} schema @param {Json} all */
function example(schema, all, depth = 0) {
  if (schema.$ref) return depth > 4 ? {} : example(all[short(schema.$ref)] ?? {}, all, depth + 1);
  if (schema.examples?.length) return schema.examples[0];
  if (schema.enum) return schema.enum[0];
  if (schema.anyOf) return example(schema.anyOf[0], all, depth + 1);
  if (schema.properties) {
    const names = schema.required?.length ? schema.required : Object.keys(schema.properties).slice(0, 1);
    return Object.fromEntries(names.map((name) => [name, example(schema.properties[name], all, depth + 1)]));
  }
  return { string: "Hello", integer: 0, number: 0, boolean: true, array: [], object: {} }[schema.type] ?? "Hello";
}

const quote = (value) => `'${String(value).replace(/'/g, "'\\''")}'`;

/** @param {string} method @param {string} path @param {Json} operation @param {Json} all */
function curl(method, path, operation, all) {
  const given = (operation.parameters ?? []).filter((each) => each.required);
  const query = given.filter((each) => each.in === "query").map((each) => `${each.name}=s_123`).join("&");
  const place = path.replace(/\{(\w+)\}/g, (_, name) => `<${name}>`) + (query && `?${query}`);
  const address = new URL(place.slice(1), document.baseURI).href.replace(/%3C/g, "<").replace(/%3E/g, ">");
  const streams = Object.values(operation.responses ?? {}).some((each) => each.content?.["text/event-stream"]);
  const lines = [`curl ${streams ? "-N " : ""}${method === "get" ? "" : `-X ${method.toUpperCase()} `}${quote(address)}`];
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  // Where keys are common to the whole server, an example's key would be somebody else's already.
  if (path.includes("{") && (operation.parameters ?? []).some((each) => each.name === "Idempotency-Key")) lines.push("-H 'idempotency-key: my-key-1'");
  if (body) lines.push("-H 'content-type: application/json'", `-d ${quote(JSON.stringify(example(body, all)))}`);
  return lines.join(" \\\n  ");
}

/** @param {string} method @param {string} path @param {Json} operation @param {Json} all */
function section(method, path, operation, all) {
  const id = anchor("op", operation.operationId ?? `${method}-${path}`);
  const parameters = operation.parameters ?? [];
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const answers = Object.entries(operation.responses ?? {});
  const row = ([status, answer]) => {
    const bodies = Object.entries(answer.content ?? {}).map(([media, content]) =>
      media === "application/json" ? type(content.schema) : [h("code", {}, media), ...items(content.itemSchema)]);
    const what = bodies.length === 0 ? ["empty"] : bodies.flatMap((body, index) => (index ? [" or ", ...body] : body));
    const heads = Object.entries(answer.headers ?? {}).flatMap(([name, head]) => [" Header ", h("code", {}, name), ": ", ...text(head.description)]);
    return [h("code", {}, status), what, [...text(answer.description), ...heads]];
  };
  const good = answers.filter(([status]) => status < "400");
  const bad = answers.filter(([status]) => status >= "400");
  return h("section", { class: "operation", id, "aria-labelledby": `${id}-title` },
    h("h3", { id: `${id}-title` }, h("span", { class: "method", "data-method": method }, method.toUpperCase()), " ", h("code", {}, path)),
    h("p", {}, ...text(operation.description?.startsWith(operation.summary) ? operation.description : [operation.summary, operation.description].filter(Boolean).join(". "))),
    ...(parameters.length ? [h("h4", {}, "Parameters"), table(["Name", "In", "Type", ""], parameters.map((each) => [
      [h("code", {}, each.name), each.required ? " *" : ""], each.in, type(each.schema), text(each.description),
    ]))] : []),
    ...(body ? [h("h4", {}, "Body: ", ...type(body)), ...[body.$ref && all[short(body.$ref)]].filter((each) => each?.properties).map(fields)] : []),
    h("h4", {}, "Answers"),
    table(["Status", "Body", ""], good.map(row)),
    ...(bad.length ? [h("details", {}, h("summary", {}, `Errors: ${bad.map(([status]) => status).join(", ")}`), table(["Status", "Body", ""], bad.map(row)))] : []),
    h("h4", {}, "Try it"),
    h("pre", { tabindex: "0" }, h("code", {}, curl(method, path, operation, all))));
}

/** @param {Json} api */
function show(api) {
  const all = api.components?.schemas ?? {};
  const contents = document.querySelector("#contents");
  const main = document.querySelector("#reference");
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({ method, path, operation: item[method] })));
  const tags = [...new Set([...(api.tags ?? []).map((tag) => tag.name), ...operations.flatMap((each) => each.operation.tags ?? ["other"])])];
  document.querySelector("#about").replaceChildren(
    h("strong", {}, `${api.info.title} ${api.info.version}. `), ...text(api.info.summary), " ", ...text(api.info.description),
    " A star marks what is required.");
  for (const tag of tags) {
    const mine = operations.filter((each) => (each.operation.tags ?? ["other"])[0] === tag);
    if (mine.length === 0) continue;
    const title = tag[0].toUpperCase() + tag.slice(1);
    main.append(h("h2", { id: anchor("tag", tag) }, title), ...mine.map(({ method, path, operation }) => section(method, path, operation, all)));
    contents.append(h("h2", {}, title), h("ul", {}, ...mine.map(({ method, path, operation }) =>
      h("li", {}, h("a", { href: `#${anchor("op", operation.operationId ?? `${method}-${path}`)}` }, operation.summary ?? path)))));
  }
  main.append(h("h2", { id: "schemas" }, "Schemas"));
  for (const [name, schema] of Object.entries(all).sort(([one], [other]) => one.localeCompare(other))) {
    main.append(h("section", { class: "schema", id: anchor("schema", name) },
      h("h3", {}, h("code", {}, name)),
      schema.description ? h("p", {}, ...text(schema.description.replace(/\s+Attributes:[^]*$/, ""))) : null,
      schema.properties ? fields(schema) : h("p", {}, ...type(schema))));
  }
  contents.append(h("h2", {}, "Schemas"), h("ul", {}, h("li", {}, h("a", { href: "#schemas" }, `All ${Object.keys(all).length}`))));
  main.removeAttribute("aria-busy");
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

try {
  const response = await fetch(new URL("openapi.json", document.baseURI), { cache: "no-cache" });
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
  show(await response.json());
} catch (error) {
  document.querySelector("#about").textContent = `The reference could not be read: ${error.message} Reload to try again.`;
}
