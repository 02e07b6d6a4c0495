// node:https: the client over fetch; a server is node:http's, since the node ends TLS.
import http, { clientOf } from "node:http";
export const { request, get } = clientOf("https:");
export const { Agent, globalAgent, Server, createServer } = http;
export default { ...http, request, get };
