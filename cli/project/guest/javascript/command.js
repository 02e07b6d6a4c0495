// The component's entry for a scheduled app: runs the app's main() once.
import "./web/platform.js";
import { exit } from "freehold:bindings";
import { startOnce } from "./app.js";
import { closeAll } from "./web/fetch.js";
import { described, settle } from "./web/loop.js";
import * as app from "freehold:app";

await settle();
const main = app.main ?? app.default;
if (typeof main !== "function") throw new Error("the app exports no function main(); a scheduled app needs one");

// process.exit() and process.exitCode (node/process.js), and an integer that main() returns.
const platform = globalThis[Symbol.for("freehold.platform")];
platform.exit = (code) => exit.exitWithCode(code & 255);

export const run = {
  async run() {
    startOnce();
    try {
      const returned = await main();
      const code = Number.isInteger(returned) ? returned : Number(platform.exitCode ?? 0);
      if (code !== 0) platform.exit(code);
    } catch (error) {
      console.error(described(error));
      throw error;
    } finally {
      closeAll();
    }
  },
};
