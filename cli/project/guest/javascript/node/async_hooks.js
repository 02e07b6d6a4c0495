// node:async_hooks: a store holds from run() until what run() was given has settled. An instance answers one request at
// a time, so that is the request's own store; two run() at once within one request see the later one.
export class AsyncLocalStorage {
  #store;
  run(store, call, ...given) {
    const before = this.#store;
    this.#store = store;
    const restore = () => {
      this.#store = before;
    };
    let result;
    try {
      result = call(...given);
    } catch (error) {
      restore();
      throw error;
    }
    if (typeof result?.then === "function") result.then(restore, restore);
    else setTimeout(restore, 0); // a callback's work goes on after it returned: the store stays for what it has begun
    return result;
  }
  exit(call, ...given) {
    return this.run(undefined, call, ...given);
  }
  getStore() {
    return this.#store;
  }
  enterWith(store) {
    this.#store = store;
  }
  disable() {
    this.#store = undefined;
  }
  static bind = (call) => call;
  static snapshot = () => (call, ...given) => call(...given);
}
export class AsyncResource {
  constructor(type) {
    this.type = type;
  }
  runInAsyncScope(call, self, ...given) {
    return call.apply(self, given);
  }
  emitDestroy() {
    return this;
  }
  asyncId() {
    return 1;
  }
  triggerAsyncId() {
    return 0;
  }
  bind(call) {
    return call;
  }
  static bind = (call) => call;
}
export const createHook = () => ({ enable() {}, disable() {} });
export const executionAsyncId = () => 1;
export const triggerAsyncId = () => 0;
export const executionAsyncResource = () => ({});
export default { AsyncLocalStorage, AsyncResource, createHook, executionAsyncId, triggerAsyncId, executionAsyncResource };
