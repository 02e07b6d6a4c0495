// The component's entry for a scheduled app: runs the app's main() once.
import * as app from "freehold:app";

const main = app.main ?? app.default;
if (typeof main !== "function") throw new Error("the app exports no function main(); a scheduled app needs one");

export const run = {
  async run() {
    try {
      await main();
    } catch (error) {
      console.error(error?.stack ? `${error}\n${error.stack}` : String(error));
      throw error;
    }
  },
};
