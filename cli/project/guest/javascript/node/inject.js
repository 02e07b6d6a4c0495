// The globals that Node has and the web has not; a bundle that names none of them holds none of this.
export { Buffer } from "node:buffer";
export { default as process } from "node:process";
