// The link that opened a page: its code, and requests to this installation that show it.

/** The code behind the # of the link; it is taken out of the address so that no history keeps it. */
export function takeCode() {
  const code = location.hash.slice(1);
  if (code) history.replaceState(null, '', location.pathname);
  return code;
}

/** Ask this installation. Returns [status, JSON or null]; status 0 when it no longer answers. */
export async function ask(code, path, body) {
  const fields = { 'Freehold-Code': code, 'Content-Type': 'application/json' };
  try {
    const answer = await fetch(path, body === undefined ? { headers: fields } : { method: 'POST', headers: fields, body: JSON.stringify(body) });
    const kind = answer.headers.get('Content-Type') || '';
    return [answer.status, kind.startsWith('application/json') ? await answer.json() : null];
  } catch {
    return [0, null];
  }
}
