// The app's configuration and secrets as an environment: the second argument of fetch(), and process.env.
import { configuration, declared } from "freehold:bindings";
import { Response } from "./messages.js";
import { isBuilding, refuseWhileBuilding } from "./snapshot.js";

const PRIVATE = "freehold:"; // keys of the development engine

let known = null;
// All of it as one object.
export function env() {
  const given = configuration ? configuration.getAll().filter(([name]) => !name.startsWith(PRIVATE)) : [];
  return (known ??= Object.fromEntries(given));
}

// The names, which are known before the values: those differ from environment to environment.
const names = () => (isBuilding() && declared !== null ? declared : Object.keys(env()));

// For the modules that stand in for Node's: a library may have put its own Response in the place of the global one.
globalThis[Symbol.for("freehold.platform")] = {
  Response,
  environmentNames: () => (isBuilding() ? [] : names()), // packages list them as they are imported, and read none
  environment(name, own) {
    if (Object.hasOwn(own, name)) return own[name];
    if (!names().includes(name)) return undefined;
    refuseWhileBuilding(`process.env.${name} was read`, "read it while answering a request, since each environment has its own value");
    return env()[name];
  },
};
