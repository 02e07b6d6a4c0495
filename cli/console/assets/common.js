// What every page needs: elements whose text is only ever text, and base64url.

export const b64 = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))).replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '');
export const unb64 = (text) => Uint8Array.from(atob(text.replace(/-/g, '+').replace(/_/g, '/')), (letter) => letter.charCodeAt(0));
export const hex = (bytes) => [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
export const utf8 = (text) => new TextEncoder().encode(text);

const ODD = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Me}\u115f\u1160\u2800\u3164\uffa0\u17b4\u17b5\ufe00-\ufe0f]/gu;

const STACKED = /(?<=\p{Mn}{2})\p{Mn}/gu;
const WORD = /[\p{L}\p{N}]+/gu;
const LOOKING_LATIN = /[\p{Script=Cyrl}\p{Script=Grek}\p{Script=Armn}\p{Script=Cher}\p{Script=Copt}\p{Script=Lisu}\p{Script=Dsrt}\p{Script=Osge}\p{Script=Vaii}]/gu;
const LETTER = /[\p{Lu}\p{Ll}\p{Lt}\p{Lm}\p{Nd}\p{Zs}]/u;
const told = (letter) => `<${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}>`;
const ascii = (text) => /^[\0-\x7f]*$/.test(text);

/** Text of others as it may be shown: what is invisible, turns the direction of what follows, or looks like another letter is written out, as the command line does. */
export function clean(text) {
  const shown = String(text);
  if (/^[\t\n -~]*$/.test(shown)) return shown;
  const apart = shown.replace(WORD, (word) => (/\p{Script=Latin}/u.test(word) ? word.replace(LOOKING_LATIN, told) : word));
  const forms = [...apart].map((letter) => (!ascii(letter) && LETTER.test(letter) && ascii(letter.normalize('NFKC')) ? told(letter) : letter)).join('');
  return forms.replace(STACKED, told).replace(ODD, (letter) => ('\t\n'.includes(letter) ? letter : told(letter)));
}

/** A number or a time as this browser's language writes it; its blanks are blanks. */
export const local = (value) => value.toLocaleString().replace(/\p{Zs}/gu, ' ').replace(/\p{Cf}/gu, '');

/** The same where one line is meant: a newline would begin a line that nobody wrote. */
export const oneLine = (text) => clean(text).replace(/\n/g, '<000A>');

/** Make an element. Strings among its children become text nodes; nothing is ever parsed as HTML. */
export function h(tag, fields, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(fields || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? '' : clean(value));
  }
  const shown = children.flat(9).filter((one) => one !== null && one !== undefined && one !== false);
  made.append(...shown.map((one) => (one instanceof Node ? one : clean(one))));
  return made;
}
