// String.prototype.normalize, which the engine is built without, by unorm's tables.
import unorm from "unorm";

export const normalized = (text, form) => unorm[form.toLowerCase()](text);
