// node:process: the app's configuration as process.env, times, and no process to steer.
import { EventEmitter } from "node:events";

const platform = () => globalThis[Symbol.for("freehold.platform")]; // later: this module runs before it is there
const own = { NODE_ENV: "production" };

const env = new Proxy(own, {
  get: (_, name) => (typeof name === "string" ? platform().environment(name, own) : undefined),
  has: (_, name) => platform().environment(name, own) !== undefined,
  set: (_, name, value) => {
    own[name] = String(value);
    return true;
  },
  ownKeys: () => [...new Set([...Object.keys(own), ...platform().environmentNames()])],
  getOwnPropertyDescriptor: (_, name) => {
    const value = platform().environmentNames().includes(name) || Object.hasOwn(own, name) ? platform().environment(name, own) : undefined;
    return value === undefined ? undefined : { value, writable: true, enumerable: true, configurable: true };
  },
});

const hrtime = (since) => {
  const now = performance.now();
  const [seconds, nanoseconds] = [Math.floor(now / 1e3), Math.floor((now % 1e3) * 1e6)];
  if (!since) return [seconds, nanoseconds];
  const difference = nanoseconds - since[1];
  return difference < 0 ? [seconds - since[0] - 1, difference + 1e9] : [seconds - since[0], difference];
};
hrtime.bigint = () => BigInt(Math.floor(performance.now() * 1e6));

const output = (fd, print) => ({ fd, isTTY: false, columns: 80, writable: true, write: (text, ...rest) => (print(String(text).replace(/\n$/, "")), rest.find((one) => typeof one === "function")?.(), true), on() {}, once() {}, emit() {}, end() {}, hasColors: () => false, getColorDepth: () => 1 });

const process = Object.assign(new EventEmitter(), {
  env,
  argv: ["node", "/app"],
  argv0: "node",
  execArgv: [],
  execPath: "/node",
  title: "freehold",
  version: "v22.0.0",
  versions: { node: "22.0.0" },
  release: { name: "node" },
  platform: "linux",
  arch: "wasm32",
  pid: 1,
  ppid: 0,
  features: {},
  config: {},
  stdin: { isTTY: false, fd: 0, on() {}, resume() {}, pause() {} },
  stdout: output(1, (text) => console.log(text)),
  stderr: output(2, (text) => console.error(text)),
  nextTick: (call, ...given) => queueMicrotask(() => call(...given)),
  cwd: () => "/",
  chdir() {},
  umask: () => 0o22,
  uptime: () => performance.now() / 1e3,
  hrtime,
  memoryUsage: Object.assign(() => ({ rss: 0, heapTotal: 0, heapUsed: 0, external: 0, arrayBuffers: 0 }), { rss: () => 0 }),
  cpuUsage: () => ({ user: 0, system: 0 }),
  emitWarning: (warning) => console.warn(String(warning)),
  binding() {
    throw new Error("process.binding() is not available in the sandbox");
  },
  exit(code) {
    const { exit, exitCode } = platform();
    if (exit) exit(Number(code ?? exitCode ?? 0)); // a job; it ends here
    throw new Error(`the app called process.exit(${code ?? ""}); in the sandbox an app ends by returning`);
  },
  abort() {
    throw new Error("the app called process.abort()");
  },
  kill() {
    throw new Error("the app called process.kill(); there are no processes in the sandbox");
  },
});
Object.defineProperty(process, "exitCode", {
  get: () => platform().exitCode,
  set(code) {
    platform().exitCode = code;
  },
  enumerable: true,
});

export const { argv, argv0, execArgv, execPath, title, version, versions, release, arch, pid, ppid, stdin, stdout, stderr, nextTick, cwd, chdir, umask, uptime, memoryUsage, cpuUsage, emitWarning, exit, abort, kill, features, config } = process;
const platformName = "linux";
export { env, hrtime, platformName as platform };
export default process;
