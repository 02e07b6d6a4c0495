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

export const run = {
  async run() {
    startOnce();
    try {
      const code = await main();
      if (Number.isInteger(code) && code !== 0) exit.exitWithCode(code & 255);
    } catch (error) {
      console.error(described(error));
      throw error;
    } finally {
      closeAll();
    }
  },
};
