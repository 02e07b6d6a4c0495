// node:events: the npm package of that name, with what Node added after it.
const EventEmitter = require("events/events.js");
const { once } = EventEmitter;

module.exports = Object.assign(EventEmitter, {
  EventEmitter,
  captureRejectionSymbol: Symbol.for("nodejs.rejection"),
  errorMonitor: Symbol.for("events.errorMonitor"),
  setMaxListeners() {},
  getEventListeners: (emitter, name) => emitter.listeners?.(name) ?? [],
  listenerCount: (emitter, name) => emitter.listenerCount(name),
  once: (emitter, name, { signal } = {}) =>
    Promise.race([once(emitter, name), new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)))]),
  EventEmitterAsyncResource: EventEmitter,
  async *on(emitter, name) {
    const waiting = [];
    let wake = null;
    const hear = (...given) => (waiting.push(given), wake?.());
    emitter.on(name, hear);
    try {
      for (;;) {
        while (waiting.length) yield waiting.shift();
        await new Promise((resolve) => (wake = resolve));
      }
    } finally {
      emitter.off(name, hear);
    }
  },
});
