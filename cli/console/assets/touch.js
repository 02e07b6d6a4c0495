// A touch: the person's passkey signs the SHA-256 of a statement. What is shown comes from the bytes that are hashed.
import { b64, h, hex, local, unb64 } from './common.js';

const PURPOSE = 'urn:freehold:predicate:approval:v1';

/** Read a statement (Uint8Array) as the approval that it is; throws where it is none. */
export function readApproval(statement) {
  const said = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(statement));
  if (said.predicateType !== PURPOSE || said.subject.length !== 1) throw new Error('this is no approval');
  return { change: said.subject[0].digest.sha256, ...said.predicate };
}

/** What the person is asked to sign, as facts. */
export function approvalFacts(said) {
  const facts = [
    ['change', said.change], ['project', said.project], ['environment', said.environment],
    ['until', local(new Date(said.expires_ms))], ['mesh', said.mesh],
  ];
  if (said.comment) facts.push(['comment', said.comment]);
  return h('dl', { class: 'facts' }, facts.map(([name, value]) => [h('dt', {}, name), h('dd', { class: 'mono' }, value)]));
}

/** Have the passkey sign; returns what the command takes. */
export async function touch(rp, credentials, statement) {
  const challenge = await crypto.subtle.digest('SHA-256', statement);
  const allowCredentials = credentials.map((id) => ({ type: 'public-key', id: unb64(id) }));
  const found = await navigator.credentials.get({ publicKey: { rpId: rp, challenge, allowCredentials, userVerification: 'required' } });
  const said = found.response;
  return { credential: b64(found.rawId), authenticator_data: b64(said.authenticatorData), client_data: b64(said.clientDataJSON), signature: b64(said.signature) };
}

/** Make a passkey for a person; returns what the command takes. */
export async function create(question) {
  const made = await navigator.credentials.create({ publicKey: {
    rp: { id: question.rp, name: `freehold ${question.mesh}` },
    user: { id: unb64(question.user), name: question.name, displayName: question.name },
    challenge: crypto.getRandomValues(new Uint8Array(32)),
    pubKeyCredParams: [{ type: 'public-key', alg: -7 }],
    authenticatorSelection: { userVerification: 'required', residentKey: 'preferred' },
  } });
  return { credential: b64(made.rawId), spki: b64(made.response.getPublicKey()) };
}

/** A sentence for what a browser throws. */
export function why(error) {
  if (error.name === 'NotAllowedError') return 'The passkey was not used: it was dismissed, took too long, or is not on this device.';
  if (error.name === 'SecurityError') return 'This page is not where the passkey may be used.';
  return `${error.name}: ${error.message}`;
}

export { hex };
