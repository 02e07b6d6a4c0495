// The console: which view is open, what its buttons do, and when to draw anew.
import { clean, h, unb64 } from './common.js';
import { ask, takeCode } from './link.js';
import { decide, follow, get, known, load, may, open, own, partsOf, shownIn } from './state.js';
import { forgetKey, keepKey, makeKey } from './sign.js';
import { touch, why } from './touch.js';
import * as views from './views.js';

const main = document.getElementById('main');
const head = document.getElementById('head');
const TABS = [['/', 'What needs you'], ['/projects', 'Projects'], ['/nodes', 'Nodes'], ['/logs', 'Logs'], ['/history', 'History']];

let shown = {};
let logs = { node: '', project: '', contains: '', lines: [], stop: null };
let armed = { name: '', at: 0 };
let acting = false;
let drawing = null;

function tell(text, kind = '') {
  const said = document.getElementById('said');
  said.className = kind;
  said.textContent = clean(text);
}

/** Make what is on the page like what was drawn: what has the focus, is open or is typed stays. */
function morph(old, now) {
  if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName) return old.replaceWith(now);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== now.data) old.data = now.data;
    return undefined;
  }
  for (const { name } of [...old.attributes]) if (!now.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  old.onact = now.onact;
  old.onpick = now.onpick;
  const fresh = [...now.childNodes];
  [...old.childNodes].slice(fresh.length).forEach((one) => one.remove());
  fresh.forEach((one, index) => (old.childNodes[index] ? morph(old.childNodes[index], one) : old.append(one)));
  return undefined;
}

function fill(place, ...parts) {
  const drawn = place.cloneNode(false);
  drawn.append(h('div', {}, ...parts));
  morph(place, drawn);
}

function button(words, act, kind = '') {
  const made = h('button', { type: 'button', class: kind }, words);
  made.onact = act;
  return made;
}

document.addEventListener('click', async (event) => {
  const pressed = event.target.closest('button');
  if (!pressed || !pressed.onact || acting) return;
  acting = true;
  pressed.ariaDisabled = 'true'; // `disabled` would take the focus from whoever pressed it by keyboard
  try {
    await pressed.onact();
  } catch (error) {
    tell(why(error), 'bad');
  }
  pressed.ariaDisabled = null;
  acting = false;
});

const SURE_MS = 500; // a key that is held, or a second click meant for what stood there before, is no answer

// --- acts on a lane ------------------------------------------------------------------------------------------------------

function acts(one) {
  const where = [one.project, one.environment];
  const offers = one.rollout
    ? [['promote', 'Promote to the next stage', ''], one.rollout.paused ? ['resume', 'Resume', ''] : ['pause', 'Pause', ''], ['abort', 'Abort: return to what ran', 'danger']]
    : one.retained.length ? [['rollback', 'Roll back to the release before', 'danger']] : [];
  const drawn = offers.filter(([act]) => may(act, ...where)).map(([act, words, kind]) => {
    const seen = { rollout: one.rollout ? one.rollout.id : '', stage: one.rollout ? one.rollout.stage : 0, base: one.base ? one.base.change : '' };
    const name = JSON.stringify([act, where, seen]); // whoever looked at something else is asked anew
    return button(armed.name === name ? `Sure? ${words}` : words, async () => {
      if (armed.name !== name) {
        armed = { name, at: Date.now() };
        draw();
        return;
      }
      if (Date.now() - armed.at < SURE_MS) return;
      armed.name = '';
      tell('The voters decide.', 'quiet');
      const refused = await decide({ act, project: one.project, environment: one.environment, seen, message: '' });
      tell(refused || `Decided: ${act}.`, refused ? 'bad' : 'good');
      await load();
      draw();
    }, kind);
  });
  return drawn.length ? h('div', { class: 'acts' }, drawn) : null;
}

// --- views ---------------------------------------------------------------------------------------------------------------

async function prepare(parts) {
  const [kind, ...rest] = parts;
  if (kind === 'lane') {
    const one = known.lanes.find((each) => each.project === rest[0] && each.environment === rest[1]);
    if (!one) return { body: [h('h1', {}, 'Not there'), h('p', {}, 'There is no such project or environment.')] };
    const failing = failed(one);
    const lines = await Promise.all(failing.map(async (node) => [node, views.lastWords((await get(`/v1/logs?node=${node}&project=${one.project}&release=${lost(one)}&limit=200`).catch(() => ({ lines: [] }))).lines)]));
    const data = one.data_node && await get(`/v1/data/${one.project}/${one.environment}`).catch(() => null);
    return { body: () => views.lane(one, lines, acts(one), data) };
  }
  if (kind === 'change') {
    const [status, found] = await own('/console/change', rest[0]);
    if (status !== 200) return { body: [h('h1', {}, 'Change'), h('p', { class: 'bad' }, found.why)] };
    const approve = button('Approve with passkey', () => approved(found.offer), 'main');
    return { body: () => views.change(rest[0], found, approve) };
  }
  if (kind === 'logs') {
    await followLogs(rest[0] || logs.node || known.node.node, rest[0] ? rest[1] || '' : logs.project, logs.contains);
    return { body: () => views.logs(logs, logs.lines, null) };
  }
  if (kind === 'nodes') {
    const names = await get('/v1/names');
    return { body: () => views.nodes(names) };
  }
  return { body: { projects: views.projects, history: views.history }[kind] || views.home };
}

const LOGS_OF = 3;

/** Nodes whose last words matter, the worst first: those that failed, and those whose errors failed the stage while they still judged. */
function failed(one) {
  const ill = (list) => list.filter((said) => said.verdict === 'fail' || said.errors > 0).sort((a, b) => b.errors - a.errors).slice(0, LOGS_OF).map((said) => said.node);
  if (one.rollout) return ill(one.rollout.verdicts);
  const last = known.decisions.find((each) => each.project === one.project && each.environment === one.environment && ['abort', 'start', 'promote', 'rollback'].includes(each.action));
  return last && last.action === 'abort' ? ill(last.numbers) : [];
}

/** The release whose last words matter: the candidate, or the one that went back last. */
function lost(one) {
  if (one.rollout) return one.rollout.release;
  const gone = known.changes.find((each) => each.project === one.project && each.environment === one.environment && ['rolled-back', 'aborted'].includes(each.state));
  return gone ? gone.release : '';
}

async function approved(offer) {
  tell('Waiting for your passkey.', 'quiet');
  const touched = await touch(offer.rp, offer.credentials, unb64(offer.statement));
  const [status, answer] = await own('/console/approve', { statement: offer.statement, touched });
  tell(status === 200 ? 'Approved. The node that holds its start submits it.' : answer.why, status === 200 ? 'good' : 'bad');
  await turn();
}

async function followLogs(node, project, contains) {
  if (logs.stop && logs.node === node && logs.project === project && logs.contains === contains) return;
  if (logs.stop) logs.stop.abort();
  logs = { node, project, contains, lines: [], stop: new AbortController() };
  const mine = logs;
  const query = new URLSearchParams({ node, project, contains, follow: 'true', limit: '200' });
  follow(`/v1/logs?${query}`, (kind, line) => {
    if (kind !== 'log') return;
    mine.lines = [...mine.lines.slice(-499), JSON.stringify(line)];
    if (drawing || document.hidden) return;
    drawing = setTimeout(() => {
      drawing = null;
      if (current()[0] === 'logs') draw();
    }, 250);
  }, mine.stop.signal);
}

document.addEventListener('change', (event) => {
  const name = event.target.dataset && event.target.dataset.field;
  if (!name) return;
  const wanted = { node: logs.node, project: logs.project, contains: logs.contains, [name]: event.target.value };
  followLogs(wanted.node, wanted.project, wanted.contains);
  draw();
});

const current = () => location.hash.slice(1).split('/').filter(Boolean);

function draw() {
  const here = `/${current()[0] || ''}`;
  fill(head, h('div', {}, h('strong', {}, `Freehold: ${known.where.name}`), h('nav', { 'aria-label': 'views' }, TABS.map(([path, words]) => h('a', { href: `#${path}`, 'aria-current': path === here ? 'page' : null }, words)))));
  const body = typeof shown.body === 'function' ? shown.body() : shown.body;
  fill(main, known.trouble && h('section', { class: 'panel alert' }, h('strong', { class: 'bad' }, 'The node does not answer: '), known.trouble), body);
  document.title = `${main.querySelector('h1') ? main.querySelector('h1').textContent : 'Freehold'} - Freehold console`;
}

let turning = 0;
async function turn() {
  turning += 1;
  const mine = turning;
  const found = await prepare(current()).catch((error) => ({ body: [h('h1', {}, 'It did not work'), h('p', { class: 'bad' }, error.message)] }));
  if (mine !== turning) return;
  shown = found;
  draw();
}

const AGAIN_MS = 1000;
const BUSY_MS = 3000;
const AWAY_MS = 5000;
let timer = null;
let stale = new Set();
let loaded = 0;
let patience = AGAIN_MS;

/**
 * Look anew at what an event is about, as far as the open view shows it, once for all that happens meanwhile. No event puts
 * it off; the first has it at once, and a stream of them every few seconds. A page that nobody sees waits until somebody does.
 */
function again(kind, fields) {
  for (const part of partsOf(kind, fields)) stale.add(part);
  if (timer || !wanted().length || document.hidden) return;
  const since = Date.now() - loaded;
  patience = since > BUSY_MS ? AGAIN_MS : Math.min(patience * 1.5, BUSY_MS);
  timer = setTimeout(async () => {
    const news = await look();
    timer = null;
    again('record', {}); // what came meanwhile
    if (!news || news.length || current()[0] === 'change') await turn();
  }, Math.max(100, patience - since));
}

const wanted = () => [...stale].filter((part) => shownIn(current(), part));

const moves = () => known.lanes.map((one) => one.sequence).join();

/** Load what the open view shows and is old. Returns what `load` does. */
async function look() {
  const parts = wanted();
  parts.forEach((part) => stale.delete(part));
  const before = moves();
  let news = await load(parts);
  if (news && moves() !== before && !parts.includes('decisions') && shownIn(current(), 'decisions')) {
    stale.delete('decisions');
    const reasons = await load(['decisions']); // what a lane came to is not shown without its reason
    news = reasons && [...news, ...reasons];
  }
  if (!news) parts.forEach((part) => stale.add(part)); // the node did not answer: they are old still
  loaded = Date.now() + (news ? 0 : AWAY_MS);
  return news;
}

document.addEventListener('visibilitychange', () => {
  again('record', {});
  if (!document.hidden && logs.stop) draw();
});

async function start() {
  const code = takeCode();
  if (!(await open())) {
    if (!code) return fill(main, h('h1', {}, 'This browser is not known'), h('p', {}, 'Run ', h('code', {}, 'freehold console'), ' and open the link that it prints.'));
    const key = await makeKey();
    const [status, answer] = await ask(code, '/console/enrol', { key: key.name });
    if (status !== 200) return fill(main, h('h1', {}, 'This link is over'), h('p', {}, (answer && answer.why) || 'Run freehold console again and open the link that it prints.'));
    await keepKey(known.where.mesh, key);
    known.key = key;
  }
  await load();
  if (/grant|caller\./.test(known.trouble) || (known.me && known.me.problem)) {
    await forgetKey(known.where.mesh);
    return fill(main, h('h1', {}, 'This browser\'s key has ended'), h('p', {}, 'Run ', h('code', {}, 'freehold console'), ' and open the link that it prints.'));
  }
  window.addEventListener('hashchange', async () => {
    armed.name = '';
    tell('');
    shown = { body: [h('h1', {}, 'One moment')] }; // what was open before is not left to be pressed under another address
    draw();
    if (wanted().length) await look();
    await turn();
    main.focus();
  });
  await turn();
  follow('/v1/events', again);
  return undefined;
}

start().catch((error) => fill(main, h('h1', {}, 'It did not work'), h('p', { class: 'bad' }, `${error.name}: ${error.message}`)));
