// What stands in for crypto.js and normalize.js in an app whose bundle never names what they add.
export const extendCrypto = () => {};
export const normalized = (text) => text;
