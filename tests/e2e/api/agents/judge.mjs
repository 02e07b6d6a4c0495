// MCP's own TypeScript client, as a test has it act: connects as it is told, takes the steps, prints what came of each.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const given = JSON.parse(process.argv[2]);
const transport = given.url
  ? new StreamableHTTPClientTransport(new URL(given.url), { requestInit: { headers: given.fields } })
  : new StdioClientTransport({ command: given.command, args: given.args, env: given.env, cwd: given.folder });
const client = new Client({ name: "judge", version: "1" });
await client.connect(transport);

/** Read a tool's answer to its end: over HTTP by the number of its part, over standard streams by its cursor. */
async function whole(name, asked) {
  let text = "", next = {}, pages = 0;
  for (;;) {
    const answer = await client.callTool({ name, arguments: { ...asked, ...next } });
    const said = answer.structuredContent ?? {};
    pages += 1;
    if (answer.isError || said.untrusted_part === undefined) return { answer, pages };
    text += said.untrusted_part;
    if (given.url ? said.part === said.parts : said.cursor === "") return { text, pages };
    next = given.url ? { part: said.part + 1 } : { cursor: said.cursor };
  }
}

/** Call a tool that takes long; with `cancel`, until it says this in its progress. */
async function long(name, asked, cancel) {
  const progress = [], stop = new AbortController();
  const options = {
    timeout: 30_000, resetTimeoutOnProgress: true, signal: stop.signal,
    onprogress: (one) => {
      progress.push(one.message);
      if (cancel && one.message.includes(cancel)) stop.abort("the judge is satisfied");
    },
  };
  try {
    return { progress, answer: await client.callTool({ name, arguments: asked }, undefined, options) };
  } catch (error) {
    return { progress, failed: String(error) };
  }
}

const tools = (await client.listTools()).tools.map((one) => one.name);
const can = client.getServerCapabilities();
const resources = can.resources ? (await client.listResources()).resources.map((one) => one.uri) : [];
const prompts = can.prompts ? (await client.listPrompts()).prompts.map((one) => one.name) : [];
const steps = [];
for (const step of given.steps) {
  steps.push(step.long ? await long(step.tool, step.asked, step.cancel) : await whole(step.tool, step.asked));
}
console.log(JSON.stringify({ tools, resources, prompts, steps }));
await client.close();
