// Headers of the Fetch standard, over a list of pairs in the order of the wire.
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;

function checkedName(name) {
  const text = String(name);
  if (!TOKEN.test(text)) throw new TypeError(`"${text}" is an invalid header name`);
  return text.toLowerCase();
}
function checkedValue(value) {
  const text = String(value).replace(/^[\t\r\n ]+|[\t\r\n ]+$/g, "");
  if (!VALUE.test(text)) throw new TypeError(`"${text}" is an invalid header value`);
  return text;
}

export class Headers {
  #list = [];

  constructor(init) {
    if (init === undefined) return;
    if (init === null || typeof init !== "object") throw new TypeError("Headers takes pairs, an object or Headers");
    if (#list in init) this.#list = init.#list.map((pair) => [...pair]);
    else if (typeof init[Symbol.iterator] === "function") {
      for (const pair of init) {
        const [name, value, ...rest] = pair;
        if (value === undefined || rest.length) throw new TypeError("each entry of Headers must be a name and a value");
        this.append(name, value);
      }
    } else for (const name of Reflect.ownKeys(init)) if (Object.prototype.propertyIsEnumerable.call(init, name)) this.append(name, init[name]);
  }
  // The pairs as they came from the wire, taken over as they are.
  static ofWire(pairs) {
    const made = new Headers();
    made.#list = pairs;
    return made;
  }
  static pairs(headers) {
    return headers.#list;
  }
  append(name, value) {
    this.#list.push([checkedName(name), checkedValue(value)]);
  }
  delete(name) {
    const wanted = checkedName(name);
    this.#list = this.#list.filter((pair) => pair[0] !== wanted);
  }
  get(name) {
    const wanted = checkedName(name);
    let found = null;
    for (const pair of this.#list) if (pair[0] === wanted) found = found === null ? pair[1] : `${found}, ${pair[1]}`;
    return found;
  }
  getSetCookie() {
    return this.#list.filter((pair) => pair[0] === "set-cookie").map((pair) => pair[1]);
  }
  has(name) {
    const wanted = checkedName(name);
    return this.#list.some((pair) => pair[0] === wanted);
  }
  set(name, value) {
    const wanted = checkedName(name);
    const text = checkedValue(value);
    const at = this.#list.findIndex((pair) => pair[0] === wanted);
    if (at < 0) this.#list.push([wanted, text]);
    else this.#list = this.#list.flatMap((pair, index) => (index === at ? [[wanted, text]] : pair[0] === wanted ? [] : [pair]));
  }
  forEach(call, self) {
    for (const [name, value] of this) call.call(self, value, name, this);
  }
  *entries() {
    for (const name of [...new Set(this.#list.map((pair) => pair[0]))].sort()) {
      if (name !== "set-cookie") yield [name, this.get(name)];
      else for (const value of this.getSetCookie()) yield [name, value];
    }
  }
  *keys() {
    for (const [name] of this.entries()) yield name;
  }
  *values() {
    for (const [, value] of this.entries()) yield value;
  }
  [Symbol.iterator]() {
    return this.entries();
  }
  get [Symbol.toStringTag]() {
    return "Headers";
  }
}
