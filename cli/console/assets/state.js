// What the page knows: the node's answers, loaded with this browser's key, anew whenever the node says that something happened.
import { knownKey, signBytes, signed } from './sign.js';
import { unb64 } from './common.js';

export const known = { where: null, key: null, me: null, node: null, lanes: [], changes: [], members: [], decisions: [], trouble: '' };

/** Ask the node. Returns the JSON of a 200 as text; throws an Error with the node's own words. */
async function asked(path) {
  const answer = await carried(path);
  const text = await answer.text();
  if (answer.status === 200) return text;
  let said = {};
  try { said = JSON.parse(text); } catch { /* no words of the node's */ }
  throw new Error(said.detail || said.why || `the node answered ${answer.status}`);
}

export const get = async (path) => JSON.parse(await asked(path));

async function carried(path, signal) {
  const fields = await signed(known.key, 'GET', known.where.authority + path, '', known.where.node);
  return fetch(path, { headers: fields, signal });
}

/** Ask this installation. Returns [status, JSON]. */
export async function own(path, value) {
  const body = JSON.stringify(value);
  const fields = await signed(known.key, 'POST', location.origin + path, body, '');
  const answer = await fetch(path, { method: 'POST', headers: { ...fields, 'Content-Type': 'application/json' }, body });
  return [answer.status, await answer.json().catch(() => ({}))];
}

/** Sign what was drawn and have it decided. Returns '' or why not. */
export async function decide(wanted) {
  const [status, drawn] = await own('/console/draw', wanted);
  if (status !== 200) return drawn.why || 'it could not be drawn';
  const signature = await signBytes(known.key, unb64(drawn.to_sign));
  const [decided, outcome] = await own('/console/decide', { draft: drawn.draft, signature });
  if (decided !== 200) return outcome.why || 'it was not taken';
  return outcome.outcome === 'decided' ? '' : `${outcome.rule || outcome.outcome}: ${outcome.detail}`;
}

/** Whether this browser's key may do something there; who asks draws no button that would be refused. */
export function may(verb, project, environment) {
  const covers = (scope, name) => scope.includes('*') || scope.includes(name);
  const grants = known.me ? [known.me, ...known.me.beside] : [];
  return grants.some((one) => one.verbs.includes(verb) && covers(one.projects, project) && covers(one.environments, environment));
}

export async function open() {
  known.where = await (await fetch('/console/where')).json();
  known.key = await knownKey(known.where.mesh);
  return known.key !== null;
}

const PATHS = {
  me: () => `/v1/principals/${known.key.name}`, node: () => '/v1/node', lanes: () => '/v1/lanes',
  changes: () => '/v1/changes?limit=50', members: () => '/v1/members', decisions: () => '/v1/decisions?limit=50',
};
const TOLD = {
  rollout: ['lanes'], start: ['changes'], run: ['lanes', 'changes'], stop: ['lanes', 'changes'], reverted: ['lanes', 'changes', 'decisions'],
  member: ['members', 'node'],
};
const OF_RECORD = {
  certificate: ['members', 'me'], admission: ['members', 'me'], revocation: ['members', 'me'], grant: ['me'],
  change: ['changes'], evidence: ['changes'], approval: ['changes'], prepared: ['changes'], status: ['members'], address: ['members'],
  equivocation: ['node', 'members'], site: ['node'],
};

const isOf = (lane) => (one) => lane === laneOf(one.project, one.environment);
const laneOf = (project, environment) => `lane ${project} ${environment}`;

/**
 * The parts that an event of the node makes old: all of them for an event that is not known here, none for records that no
 * view shows, and of the lanes the one that it is about, where that is known.
 */
export function partsOf(kind, fields) {
  if (kind === 'record') return OF_RECORD[String(fields.key).split('/')[1]] || [];
  const parts = kind === 'decision' && fields.project ? TOLD.reverted : TOLD[kind] || Object.keys(PATHS);
  const lane = laneOf(fields.project, fields.environment);
  return known.lanes.some(isOf(lane)) ? parts.map((part) => (part === 'lanes' ? lane : part)) : parts;
}

const SHOWN = {
  lane: ['lanes', 'changes', 'decisions'], change: ['changes'], projects: ['lanes', 'changes'], nodes: ['members', 'node'],
  logs: ['lanes'], history: ['decisions'],
};

/** Whether a view shows a part; what it does not show can be old until another view is opened. What the key may do is known to all. */
export function shownIn([view, ...rest], part) {
  const parts = ['me', ...(SHOWN[view] || ['node', 'lanes', 'changes', 'members'])];
  if (!part.startsWith('lane ')) return parts.includes(part);
  return view === 'lane' ? part === laneOf(...rest) : parts.includes('lanes');
}

let texts = {};

const pathOf = (part) => (part.startsWith('lane ') ? `/v1/lanes/${part.slice(5).replace(' ', '/')}` : PATHS[part]());

/** Take an answer in: a lane takes the place of the one that was known. */
function take(part, text) {
  const found = JSON.parse(text);
  if (part.startsWith('lane ')) {
    known.lanes = known.lanes.map((one) => (isOf(part)(one) ? found : one));
    delete texts.lanes;
  } else {
    known[part] = found;
  }
  if (part === 'lanes') texts = Object.fromEntries(Object.entries(texts).filter(([name]) => !name.startsWith('lane ')));
  texts[part] = text;
}

async function fetched(part) {
  try {
    return [part, await asked(pathOf(part))];
  } catch (error) {
    if (!part.startsWith('lane ')) throw error;
    return ['lanes', await asked(PATHS.lanes())]; // it may be gone
  }
}

/** Look at parts anew. Returns which of them differ from before, `trouble` among them; null where the node did not answer. */
export async function load(parts = Object.keys(PATHS)) {
  try {
    const once = parts.includes('lanes') ? parts.filter((part) => !part.startsWith('lane ')) : parts;
    const found = await Promise.all(once.map((part) => fetched(part)));
    const news = found.filter(([part, text]) => texts[part] !== text);
    for (const [part, text] of news) take(part, text);
    const well = known.trouble ? ['trouble'] : [];
    known.trouble = '';
    return [...news.map(([part]) => part), ...well];
  } catch (error) {
    known.trouble = error.message;
    return null;
  }
}

export const nodeName = (id) => (known.members.find((one) => one.node === id) || {}).name || id.slice(-8);

/** Follow a stream of the node's events, for ever; `hear` gets each event's kind and fields. */
export async function follow(path, hear, signal) {
  for (let wait = 500; !(signal && signal.aborted); wait = Math.min(wait * 2, 15000)) {
    try {
      const answer = await carried(path, signal);
      if (answer.status === 200) {
        wait = 500;
        await read(answer.body.getReader(), hear);
      }
    } catch { /* the node or this installation is away: try again */ }
    if (signal && signal.aborted) return;
    hear('away', {});
    await new Promise((done) => { setTimeout(done, wait); });
  }
}

const FRAME_MAX_CHARS = 1 << 20;

async function read(reader, hear) {
  const decoder = new TextDecoder();
  for (let rest = ''; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    if (rest.length > FRAME_MAX_CHARS) throw new Error('the node sent an event without an end');
    const frames = rest.split('\n\n');
    rest = frames.pop();
    for (const frame of frames) {
      const kind = /^event: (.*)$/m.exec(frame);
      const data = /^data: (.*)$/m.exec(frame);
      if (kind && data) hear(kind[1], JSON.parse(data[1]));
    }
  }
}
