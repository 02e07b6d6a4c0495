// The browser's own key: Ed25519, never exported, kept in this origin's IndexedDB; it signs each request (RFC 9421).
import { b64, hex, utf8 } from './common.js';

const plain = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes)));

function store() {
  return new Promise((done, failed) => {
    const asked = indexedDB.open('freehold', 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore('keys');
    asked.onsuccess = () => done(asked.result);
    asked.onerror = () => failed(asked.error);
  });
}

function act(database, mode, work) {
  return new Promise((done, failed) => {
    const asked = work(database.transaction('keys', mode).objectStore('keys'));
    asked.onsuccess = () => done(asked.result);
    asked.onerror = () => failed(asked.error);
  });
}

/** The key of this browser for a mesh, or null. Its private half cannot be read, not even by this page. */
export async function knownKey(mesh) {
  return (await act(await store(), 'readonly', (keys) => keys.get(mesh))) || null;
}

export async function makeKey() {
  const pair = await crypto.subtle.generateKey({ name: 'Ed25519' }, false, ['sign', 'verify']);
  return { pair, name: hex(await crypto.subtle.exportKey('raw', pair.publicKey)) };
}

export async function keepKey(mesh, key) {
  await act(await store(), 'readwrite', (keys) => keys.put(key, mesh));
}

export async function forgetKey(mesh) {
  await act(await store(), 'readwrite', (keys) => keys.delete(mesh));
}

export const signBytes = async (key, bytes) => b64(await crypto.subtle.sign('Ed25519', key.pair.privateKey, bytes));

/** The header fields that sign one request to `target`, an absolute URI, for one node. */
export async function signed(key, method, target, body, node) {
  const digest = `sha-256=:${plain(await crypto.subtle.digest('SHA-256', utf8(body)))}:`;
  const covered = [['@method', method], ['@target-uri', target], ['content-digest', digest]];
  const fields = { 'Content-Digest': digest };
  if (node) {
    covered.push(['freehold-node', node]);
    fields['Freehold-Node'] = node;
  }
  const names = covered.map(([name]) => `"${name}"`).join(' ');
  const nonce = b64(crypto.getRandomValues(new Uint8Array(18)));
  const said = `(${names});created=${Math.floor(Date.now() / 1000)};nonce="${nonce}";keyid="${key.name}";alg="ed25519"`;
  const base = [...covered.map(([name, value]) => `"${name}": ${value}`), `"@signature-params": ${said}`].join('\n');
  const signature = await crypto.subtle.sign('Ed25519', key.pair.privateKey, utf8(base));
  return { ...fields, 'Signature-Input': `fh=${said}`, Signature: `fh=:${plain(signature)}:` };
}
