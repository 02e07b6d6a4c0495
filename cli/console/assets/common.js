// What every page needs: elements whose text is only ever text, and base64url.

export const b64 = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))).replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '');
export const unb64 = (text) => Uint8Array.from(atob(text.replace(/-/g, '+').replace(/_/g, '/')), (letter) => letter.charCodeAt(0));
export const hex = (bytes) => [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
export const utf8 = (text) => new TextEncoder().encode(text);

const ODD = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Me}\u115f\u1160\u2800\u3164\uffa0\u17b4\u17b5\ufe00-\ufe0f]/gu;

/** Text of others as it may be shown: what is invisible, or turns the direction of what follows, is written out, as the command line does. */
export const clean = (text) => String(text).replace(ODD, (letter) => ('\t\n'.includes(letter) ? letter : `<${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}>`));

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
