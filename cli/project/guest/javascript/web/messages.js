// Request and Response of the Fetch standard.
import { Body, extract } from "./body.js";
import { Headers } from "./headers.js";

const METHOD = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const KNOWN = new Set(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]);
const REFUSED = new Set(["CONNECT", "TRACE", "TRACK"]);
const NULL_BODY = new Set([101, 103, 204, 205, 304]);
const REDIRECTS = new Set([301, 302, 303, 307, 308]);

function checkedMethod(given) {
  const method = String(given);
  if (!METHOD.test(method)) throw new TypeError(`"${method}" is no method`);
  const upper = method.toUpperCase();
  if (REFUSED.has(upper)) throw new TypeError(`fetch cannot send ${upper}`);
  return KNOWN.has(upper) && upper !== "PATCH" ? upper : method;
}

function checkedUrl(given) {
  let url;
  try {
    url = new URL(String(given));
  } catch {
    throw new TypeError(`Failed to parse URL from ${given}`);
  }
  if (url.username || url.password) throw new TypeError("a Request's URL cannot include credentials");
  return url.href;
}

function takeBody(message, headers, init) {
  const { bytes, stream, type } = extract(init);
  if (type !== null && !headers.has("content-type")) headers.append("content-type", type);
  Body.give(message, { bytes, stream });
}

const SETTINGS = { mode: "cors", credentials: "same-origin", cache: "default", redirect: "follow", referrer: "about:client", referrerPolicy: "", integrity: "", keepalive: false };

export class Request extends Body {
  #method = "GET";
  #url = "";
  #headers;
  #signal = null;
  #settings = SETTINGS;

  constructor(input, init = {}) {
    super();
    init ??= {};
    const from = typeof input === "object" && input !== null && #url in input ? input : null; // not one that only looks like it
    this.#url = from ? from.#url : checkedUrl(input);
    this.#method = init.method !== undefined ? checkedMethod(init.method) : (from?.#method ?? "GET");
    this.#headers = new Headers(init.headers ?? from?.headers);
    this.#signal = init.signal !== undefined ? init.signal : (from?.#signal ?? null);
    if (this.#signal !== null && !(this.#signal instanceof AbortSignal)) throw new TypeError("signal is no AbortSignal");
    this.#settings = { ...(from?.#settings ?? SETTINGS) };
    for (const name of Object.keys(SETTINGS)) if (init[name] !== undefined) this.#settings[name] = init[name];
    const hasBody = init.body !== undefined && init.body !== null;
    if (hasBody && (this.#method === "GET" || this.#method === "HEAD")) {
      throw new TypeError("Request with GET/HEAD method cannot have body.");
    }
    if (hasBody && init.body instanceof ReadableStream && init.duplex === undefined) {
      throw new TypeError("RequestInit: duplex option is required when sending a body.");
    }
    if (hasBody) takeBody(this, this.#headers, init.body);
    else if (from && init.body === undefined) Body.move(from, this);
  }
  // A request as it came from the wire. `pull` gives its body, null says that there is none.
  static ofWire(method, url, pairs, pull, signal) {
    const made = new Request(BLANK);
    made.#method = method;
    made.#url = url;
    made.#headers = Headers.ofWire(pairs);
    made.#signal = signal;
    if (pull !== null) Body.give(made, { pull });
    return made;
  }
  get method() {
    return this.#method;
  }
  get url() {
    return this.#url;
  }
  get headers() {
    return this.#headers;
  }
  get signal() {
    return (this.#signal ??= new AbortController().signal);
  }
  get destination() {
    return "";
  }
  get duplex() {
    return "half";
  }
  clone() {
    const made = new Request(this.#url, { ...this.#settings, method: this.#method, headers: this.#headers, signal: this.#signal });
    Body.share(this, made);
    return made;
  }
  get mode() {
    return this.#settings.mode;
  }
  get credentials() {
    return this.#settings.credentials;
  }
  get cache() {
    return this.#settings.cache;
  }
  get redirect() {
    return this.#settings.redirect;
  }
  get referrer() {
    return this.#settings.referrer;
  }
  get referrerPolicy() {
    return this.#settings.referrerPolicy;
  }
  get integrity() {
    return this.#settings.integrity;
  }
  get keepalive() {
    return this.#settings.keepalive;
  }
  get [Symbol.toStringTag]() {
    return "Request";
  }
}
const BLANK = "http://localhost/";

export class Response extends Body {
  #status = 200;
  #statusText = "";
  #headers;
  #type = "default";
  #url = "";
  #redirected = false;

  constructor(body = null, init = {}) {
    super();
    init ??= {};
    const status = init.status === undefined ? 200 : Math.trunc(Number(init.status));
    if (!(status >= 200 && status <= 599)) {
      throw new RangeError(`init["status"] must be in the range of 200 to 599, inclusive.`);
    }
    const text = init.statusText === undefined ? "" : String(init.statusText);
    if (!/^[\t\x20-\x7e\x80-\xff]*$/.test(text)) throw new TypeError("Invalid statusText");
    this.#status = status;
    this.#statusText = text;
    this.#headers = new Headers(init.headers ?? undefined);
    if (body === null || body === undefined) return;
    if (NULL_BODY.has(status)) throw new TypeError(`Response with null body status cannot have body (${status})`);
    takeBody(this, this.#headers, body);
  }
  static ofWire(status, pairs, pull, url, redirected) {
    const made = new Response();
    made.#status = status;
    made.#headers = Headers.ofWire(pairs);
    made.#type = "basic";
    made.#url = url;
    made.#redirected = redirected;
    if (!NULL_BODY.has(status)) Body.give(made, { pull });
    return made;
  }
  static json(data, init = {}) {
    const text = JSON.stringify(data);
    if (text === undefined) throw new TypeError("the value cannot be JSON");
    const headers = new Headers(init?.headers ?? undefined);
    if (!headers.has("content-type")) headers.set("content-type", "application/json");
    return new Response(text, { ...init, headers });
  }
  static redirect(url, status = 302) {
    if (!REDIRECTS.has(status)) throw new RangeError(`Invalid status code ${status}`);
    return new Response(null, { status, headers: { location: new URL(url).href } });
  }
  static error() {
    const made = new Response();
    made.#status = 0;
    made.#type = "error";
    return made;
  }
  get status() {
    return this.#status;
  }
  get ok() {
    return this.#status >= 200 && this.#status <= 299;
  }
  get statusText() {
    return this.#statusText;
  }
  get headers() {
    return this.#headers;
  }
  get type() {
    return this.#type;
  }
  get url() {
    return this.#url;
  }
  get redirected() {
    return this.#redirected;
  }
  clone() {
    const made = new Response(null);
    [made.#status, made.#statusText, made.#type] = [this.#status, this.#statusText, this.#type];
    [made.#url, made.#redirected] = [this.#url, this.#redirected];
    made.#headers = new Headers(this.#headers);
    Body.share(this, made);
    return made;
  }
  get [Symbol.toStringTag]() {
    return "Response";
  }
}
