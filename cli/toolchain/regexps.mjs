// Rewrites regular expressions that name Unicode properties: the engine is built without Unicode's tables, so \p{...} is
// a syntax error there. Literals, and RegExp() of a constant, by the script's syntax tree; others fail where they are made.
import { createRequire } from "node:module";
import rewritePattern from "regexpu-core";

const NAMES = /\\\\?[pP]\{/;

// Returns `code` with each such expression as plain ranges of code points. Lines stay where they are.
export async function withoutProperties(code) {
  if (!NAMES.test(code)) return code;
  // The parser comes with componentize-js.
  const { parseSync } = createRequire(import.meta.resolve("@bytecodealliance/componentize-js"))("oxc-parser");
  const parsed = parseSync("bundle.js", code, { sourceType: "module" });
  const found = [];
  visit(typeof parsed.program === "string" ? JSON.parse(parsed.program) : parsed.program, (node) => {
    if (node.type === "Literal" && node.regex && NAMES.test(node.regex.pattern)) {
      const { pattern, flags } = node.regex;
      found.push({ ...node, text: (made) => `/${made}/${plain(flags)}`, pattern, flags });
    }
    if ((node.type === "NewExpression" || node.type === "CallExpression") && node.callee.name === "RegExp") {
      const [pattern, flags] = node.arguments.map((one) => one.value);
      if (typeof pattern !== "string" || !NAMES.test(pattern) || (node.arguments[1] && typeof flags !== "string")) return;
      const text = (made) => `new RegExp(${JSON.stringify(made)}, ${JSON.stringify(plain(flags ?? ""))})`;
      found.push({ start: node.start, end: node.end, text, pattern, flags: flags ?? "" });
    }
  });
  for (const { start, end, text, pattern, flags } of found.sort((a, b) => b.start - a.start)) {
    if (!/[uv]/.test(flags)) continue; // without u, \p is the letter p
    const made = rewritePattern(pattern, flags, { unicodePropertyEscapes: "transform", unicodeFlag: "transform", unicodeSetsFlag: "transform" });
    code = code.slice(0, start) + text(made) + code.slice(end);
  }
  return code;
}

const plain = (flags) => flags.replace(/[uv]/g, "");

function visit(node, call) {
  if (node === null || typeof node !== "object") return;
  if (Array.isArray(node)) {
    for (const one of node) visit(one, call);
    return;
  }
  if (typeof node.type === "string") call(node);
  for (const key in node) if (key !== "regex") visit(node[key], call);
}
