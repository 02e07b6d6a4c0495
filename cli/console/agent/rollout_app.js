// The rollout view in an agent's window: what a tool of the mesh answered, drawn, and asked again while a rollout goes on.
// Speaks MCP Apps, 2026-01-26, to the host around it. Here are no acts: a person approves in the console or at a terminal.
import { clean, h } from './common.js';
import { grid, heard, none, panel, stages } from './rollout.js';

const PROTOCOL = '2026-01-26';
const AGAIN_MS = 3000;
const ENDED = ['base', 'aborted', 'rolled-back', 'superseded', 'retained'];
const main = document.getElementById('main');
const waiting = new Map();
let number = 0;
let asks = null; // the tool and arguments that show the same again
let mayAsk = false;
let timer = null;

const send = (message) => window.parent.postMessage({ jsonrpc: '2.0', ...message }, '*');

function request(method, params) {
  number += 1;
  const id = number;
  send({ id, method, params });
  return new Promise((done, failed) => { waiting.set(id, { done, failed }); });
}

const nameOf = (node) => `..${clean(node).slice(-6)}`;
const fill = (...parts) => main.replaceChildren(...parts.flat(9).filter((one) => one instanceof Node));
const said = (words, kind) => words && h('p', { class: kind || '' }, words);

function drawn(rollout, words) {
  const paused = rollout.paused === true ? words.paused : rollout.paused;
  return [paused && said(`Paused: ${paused}`, 'warn'), stages({ ...rollout, reason: rollout.reason || '' }), grid(heard(rollout), 'what the nodes of this stage say', nameOf)];
}

function laneOf(one) {
  const words = one.untrusted_reasons || one;
  return panel('', h('h2', {}, `${one.project} in ${one.environment}`),
    one.rollout ? drawn(one.rollout, words) : none(one.base ? `At rest: release ${one.base.release.slice(0, 12)} runs.` : 'Nothing was deployed yet.'),
    !one.rollout && words.last_abort && said(`The last release went back: ${words.last_abort}`, 'bad'));
}

function changeOf(one, rollout) {
  const state = one.state === 'base' ? 'runs' : one.state;
  return [h('h1', {}, `Change ${(one.change || one.id).slice(0, 12)}: ${state}`), said(one.untrusted_request || one.request), said(one.environment, 'quiet'),
    rollout ? panel('', drawn(rollout, one.untrusted_reasons || {})) : one.start && !ENDED.includes(one.state) && panel('', said(`${one.start.outcome}: ${one.start.rule} ${one.start.detail}`)),
    !rollout && said(one.ended || one.failure || '', 'bad')];
}

/** Draw an answer of a tool; say whether what it shows goes on. */
async function show(result) {
  const told = result.structuredContent || JSON.parse(((result.content || [])[0] || { text: '{}' }).text);
  const one = told.untrusted_answer || told;
  if (result.isError || one.error) return fill(h('h1', {}, 'It did not work'), said((one.error || {}).message || 'The tool failed.', 'bad'));
  if (one.untrusted_part !== undefined) return fill(h('h1', {}, 'Too much to draw'), none('Ask for one change.'));
  const lanes = Array.isArray(one) ? one : one.lanes;
  if (lanes) {
    const project = one.project;
    fill(h('h1', {}, 'What runs'), lanes.length ? lanes.map((each) => laneOf({ project, ...each })) : none('There is no project yet.'));
    return again(lanes.some((each) => each.rollout), 'status', {});
  }
  if (!one.state) return fill(h('h1', {}, 'Nothing to draw'));
  const id = one.change || one.id;
  let { rollout } = one;
  if (rollout === undefined && !ENDED.includes(one.state) && mayAsk) {
    const found = await request('tools/call', { name: 'status', arguments: { project: one.project } }).catch(() => ({}));
    const all = ((found.structuredContent || {}).untrusted_answer || []);
    rollout = (Array.isArray(all) ? all : []).map((each) => each.rollout).find((each) => each && each.change === id);
  }
  fill(changeOf(one, rollout));
  return again(!ENDED.includes(one.state), 'rollout_status', { change: id });
}

function again(goesOn, name, given) {
  asks = goesOn ? { name, arguments: given } : null;
  clearTimeout(timer);
  if (asks && mayAsk) timer = setTimeout(() => request('tools/call', asks).then(show, () => again(true, name, given)), AGAIN_MS);
}

function wear(context) {
  if (['light', 'dark'].includes((context || {}).theme)) document.documentElement.style.colorScheme = context.theme;
}

window.addEventListener('message', ({ source, data }) => {
  if (source !== window.parent || !data || data.jsonrpc !== '2.0') return;
  if (!data.method) {
    const { done, failed } = waiting.get(data.id) || {};
    waiting.delete(data.id);
    if (done && data.error) failed(new Error(String(data.error.message)));
    else if (done) done(data.result || {});
    return;
  }
  const params = data.params || {};
  if (data.method === 'ui/notifications/tool-result') show(params).catch(() => fill(h('h1', {}, 'The answer cannot be drawn')));
  else if (data.method === 'ui/notifications/tool-cancelled') fill(h('h1', {}, 'Cancelled'));
  else if (data.method === 'ui/notifications/host-context-changed') wear(params);
  else if (data.method === 'ui/resource-teardown') again(false);
  if (data.id === undefined) return;
  if (['ping', 'ui/resource-teardown'].includes(data.method)) send({ id: data.id, result: {} });
  else send({ id: data.id, error: { code: -32601, message: 'this view does not do that' } });
});

async function begin() {
  const host = await request('ui/initialize', { appCapabilities: { availableDisplayModes: ['inline', 'fullscreen'] }, appInfo: { name: 'freehold-rollout', version: '1' }, protocolVersion: PROTOCOL });
  mayAsk = Boolean((host.hostCapabilities || {}).serverTools);
  wear(host.hostContext);
  send({ method: 'ui/notifications/initialized', params: {} });
  new ResizeObserver(() => send({ method: 'ui/notifications/size-changed', params: { width: Math.ceil(document.documentElement.scrollWidth), height: Math.ceil(main.getBoundingClientRect().height) } })).observe(main);
}

begin();
