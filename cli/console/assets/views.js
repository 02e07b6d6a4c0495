// The views, each from what is known to elements. Whatever others wrote is text and nothing else.
import { h, local, oneLine, unb64 } from './common.js';
import { grid, heard, none, panel, stages, table } from './rollout.js';
import { known, nodeName } from './state.js';
import { approvalFacts, readApproval } from './touch.js';

export const short = (digest) => (digest || '').slice(0, 12);
const when = (ms) => (ms ? local(new Date(ms)) : '');
const link = (path, ...words) => h('a', { href: `#${path}` }, ...words);
const laneLink = (one) => link(`/lane/${one.project}/${one.environment}`, `${one.project} in ${one.environment}`);
const changeLink = (id) => link(`/change/${id}`, h('code', {}, short(id)));
/** A sentence of the nodes with their names in place of their ids. */
const named = (text) => known.members.reduce((said, one) => (one.name ? said.replaceAll(one.node, one.name) : said), text);
const waiting = (one) => one.state === 'proposed' && one.start && one.start.outcome === 'waiting';

export function home() {
  const approvals = known.changes.filter((one) => waiting(one) && one.start.rule.startsWith('approval.'));
  const held = known.changes.filter((one) => waiting(one) && !one.start.rule.startsWith('approval.'));
  const paused = known.lanes.filter((one) => one.rollout && one.rollout.paused);
  const running = known.lanes.filter((one) => one.rollout && !one.rollout.paused);
  const failed = known.lanes.filter((one) => one.last_abort && !one.rollout);
  const faults = [
    ...((known.node && known.node.concerns) || []).map((one) => one.text || one.detail || String(one)),
    ...((known.node && known.node.warnings) || []),
    ...known.members.filter((one) => one.belief === 'down' && one.standing === 'member' && !one.left).map((one) => `${one.name || one.node} does not answer`),
  ];
  const soon = Date.now() + 14 * 86400000;
  const ending = known.members.filter((one) => one.standing === 'member' && one.expires_ms && one.expires_ms < soon).map((one) => `the certificate of ${one.name || one.node} ends ${when(one.expires_ms)}`);
  if (known.me && known.me.expires_ms < Date.now() + 3 * 86400000) ending.push(`this browser's key ends ${when(known.me.expires_ms)}: run freehold console again`);
  const nothing = !(approvals.length + held.length + paused.length + failed.length + faults.length + ending.length);
  return [
    h('h1', {}, 'What needs you'),
    nothing && none('Nothing waits for anybody.'),
    approvals.map((one) => panel('', h('div', { class: 'row' }, h('strong', {}, 'Waits for approval'), changeLink(one.id)),
      h('p', {}, one.request || '(no request)'), h('p', { class: 'quiet' }, `${one.project} in ${one.environment}, proposed ${when(one.created_ms)}`),
      link(`/change/${one.id}`, 'Review it'))),
    held.map((one) => panel('', h('strong', {}, 'Waits'), h('p', {}, one.request), h('p', { class: 'quiet' }, `${one.start.rule}: ${one.start.detail}`), link(`/change/${one.id}`, 'Look at it'))),
    paused.map((one) => panel('', h('strong', { class: 'warn' }, 'Paused rollout'), h('p', {}, laneLink(one)), h('p', {}, one.rollout.paused))),
    failed.map((one) => panel('alert', h('strong', { class: 'bad' }, 'The last release went back'), h('p', {}, laneLink(one)), h('p', {}, named(one.last_abort)))),
    faults.map((one) => panel('alert', h('strong', { class: 'bad' }, 'Fault'), h('p', {}, one))),
    ending.map((one) => panel('', h('strong', { class: 'warn' }, 'Ends soon'), h('p', {}, one))),
    running.length > 0 && [h('h2', {}, 'Under way'), running.map((one) => panel('', laneLink(one), stages(one.rollout)))],
  ];
}

/** One project in one environment; `logs` are the last lines of nodes that failed, `acts` the buttons that may be pressed, `data` what the asked node says of its data. */
export function lane(one, logs, acts, data) {
  const history = known.decisions.filter((each) => each.project === one.project && each.environment === one.environment);
  const back = history.find((each) => each.numbers.length && each.action === 'abort');
  return [
    h('h1', {}, `${one.project} in ${one.environment}`),
    one.frozen && panel('alert', h('strong', {}, 'Frozen: '), one.frozen),
    one.rollout
      ? panel('', h('h2', {}, 'The rollout'), h('p', {}, 'change ', changeLink(one.rollout.change)), one.rollout.paused && h('p', { class: 'warn' }, `Paused: ${one.rollout.paused}`), stages(one.rollout), grid(heard(one.rollout), 'what the nodes of this stage say', nodeName))
      : panel('', h('h2', {}, 'What runs'), one.base ? h('p', {}, 'release ', h('code', {}, short(one.base.release)), ' of change ', changeLink(one.base.change)) : none('Nothing was deployed yet.'), h('p', { class: 'quiet' }, one.routes.join(', '))),
    acts,
    one.last_abort && !one.rollout && panel('alert', h('h2', {}, 'Why the last release went back'), h('p', {}, named(one.last_abort)), back && grid(back.numbers, 'the numbers of that decision', nodeName)),
    logs.map(([node, lines]) => [h('h3', {}, `Last log lines on ${nodeName(node)}`), h('pre', { class: 'log', tabindex: '0', 'aria-label': `log lines of ${nodeName(node)}` }, lines.map(([line, times]) => logLine(line) + (times > 1 ? `  (${times} times)` : '')).join('\n') || 'none'), link(`/logs/${node}/${one.project}`, 'All log lines')]),
    h('h2', {}, 'Can return to'),
    table(['release', 'change', 'approved by'], one.retained.map((each) => [h('code', {}, short(each.release)), changeLink(each.change), each.approvers.map(short).join(', ')]), 'no earlier release is kept'),
    h('h2', {}, 'Decisions'), decisions(history),
    h('h2', {}, 'Data'), kept(one, data),
  ];
}

/** Where its data lies, and how old its copies are, as far as the asked node knows: the holder knows of the standby and the backups. */
function kept(one, data) {
  if (!one.data_node) return h('p', {}, 'No node holds data of it.');
  const facts = [['lies on', nodeName(one.data_node)]];
  if (data && data.here === data.node) {
    const { standby, files } = data;
    facts.push(['size', `${local(Math.ceil(files.reduce((sum, file) => sum + file.size_bytes, 0) / 1024))} KiB`]);
    facts.push(['standby', standby ? `${nodeName(standby.node)}, ${standby.at_ms ? `whole copy of ${when(standby.at_ms)}` : 'no whole copy yet'} ${standby.problem}` : 'none']);
    facts.push(['newest backup', data.backup_problem || when(data.backup_ms) || 'none']);
  }
  if (data && data.copy_ms) facts.push(['second copy on this node', `of ${when(data.copy_ms)}`]);
  return h('dl', { class: 'facts' }, facts.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}

function decisions(list) {
  return table(['#slot', 'when', 'what', 'where', 'by', 'why'], list.map((one) => [String(one.slot), when(one.at_ms), one.action, one.project ? `${one.project} / ${one.environment}` : 'the mesh', one.names.join(', ') || (one.signers.length ? one.signers.map(short).join(', ') : 'the nodes'), named(one.reason)]), 'nothing was decided yet');
}

const difference = (one) => h('li', { class: one.section === 'capabilities' && one.after !== null ? 'cap' : '' }, h('span', { class: 'mark' }, one.before === null ? '+' : one.after === null ? '-' : '~'), one.app ? `${one.app}: ${one.name}` : one.name, one.section !== 'capabilities' && one.section !== 'routes' && ` ${[one.before, one.after].filter((value) => value !== null).join(' → ')}`);

const SECTIONS = ['capabilities', 'components', 'limits', 'configuration', 'secrets', 'routes', 'policy', 'rollout', 'smoke'];

/** A change as a reviewer needs it, what it newly reaches first; `offer` is drawn where a passkey of this page may approve. */
export function change(view, shown, approve) {
  const { review, papers, offer } = shown;
  const parts = (section) => review.differences.filter((one) => one.section === section);
  const reaches = parts('capabilities').filter((one) => one.before === null);
  let signing = null;
  if (offer) {
    const said = readApproval(unb64(offer.statement));
    const same = said.change === view && said.project === review.project && said.environment === review.environment && said.mesh === known.where.mesh;
    signing = same ? panel('', h('h2', {}, 'What you would sign'), approvalFacts(said), h('div', { class: 'acts' }, approve)) : panel('alert', h('strong', { class: 'bad' }, 'What would be signed is another change than the one shown. Nothing can be signed here.'));
  }
  return [
    h('h1', {}, `Change ${short(view)}`),
    h('p', {}, review.request || '(no request)'),
    h('p', { class: 'quiet' }, `${review.project} in ${review.environment}, ${review.first ? 'the first release' : `${short(review.base)} → ${short(review.release)}`}, by ${papers.author.name || short(papers.author.key)} (${papers.author.kind})`),
    h('section', { class: `panel ${reaches.length ? 'alert' : ''}` }, h('h2', {}, reaches.length ? `It newly reaches ${reaches.length} ${reaches.length === 1 ? 'thing' : 'things'}` : 'It reaches nothing new'), h('ul', { class: 'plain' }, parts('capabilities').map(difference))),
    SECTIONS.slice(1).filter((section) => parts(section).length && !(review.first && section === 'rollout')).map((section) => [h('h2', {}, section[0].toUpperCase() + section.slice(1)), h('ul', { class: 'plain' }, parts(section).map(difference))]),
    review.irreversible.length > 0 && panel('alert', h('h2', {}, 'No way back from'), h('ul', {}, review.irreversible.map((one) => h('li', {}, one)))),
    h('h2', {}, 'Where and how'),
    table(['#stage', '#nodes', 'healthy for'], review.stages.map((one, index) => [String(index + 1), String(one.nodes), `${one.min_healthy_ms / 1000} s`]), 'no node would run it'),
    h('h2', {}, 'Papers'),
    table(['paper', 'by', 'says'], [
      ...papers.approvals.map((one) => [one.by_passkey ? 'approval by passkey' : 'approval', one.name || short(one.key), one.problem ? h('span', { class: 'warn' }, `does not count: ${one.problem}`) : h('span', { class: 'good' }, 'counts')]),
      ...papers.evidence.map((one) => [`${one.kind} evidence`, one.self_attested ? `${one.name}, the author` : one.name, h('span', { class: one.passed ? 'good' : 'bad' }, one.passed ? 'PASSED' : 'FAILED')]),
    ], 'no paper is held for it'),
    papers.missing.length ? panel('', h('h2', {}, 'Missing'), h('ul', {}, papers.missing.map((one) => h('li', {}, `${one.rule}: ${one.detail}`)))) : h('p', { class: 'good' }, 'Nothing is missing.'),
    signing,
  ];
}

export function projects() {
  return [h('h1', {}, 'Projects'), table(['where', 'runs', 'state', 'answers at'], known.lanes.map((one) => [laneLink(one), one.base ? h('code', {}, short(one.base.release)) : 'nothing', one.frozen ? `frozen: ${one.frozen}` : one.rollout ? (one.rollout.paused ? 'paused' : `stage ${one.rollout.stage + 1} of ${one.rollout.stages.length}`) : 'at rest', one.routes.join(', ')]), 'there is no project yet'),
    h('h2', {}, 'Changes'), table(['change', 'request', 'where', 'state', 'proposed'], known.changes.map((one) => [changeLink(one.id), one.request, `${one.project} / ${one.environment}`, waiting(one) ? 'waits' : one.ended || one.state, when(one.created_ms)]), 'nothing was proposed yet')];
}

export function nodes(names) {
  const belief = (one) => h('span', { class: one.belief === 'down' ? 'bad' : 'good' }, one.left ? 'left' : one.belief === 'self' ? 'up (asked)' : one.belief);
  return [h('h1', {}, 'Nodes'), table(['node', 'state', 'votes', 'version', 'certificate ends', 'address'], known.members.filter((one) => one.standing === 'member').map((one) => [one.name || one.node.slice(-8), belief(one), one.voter ? 'yes' : '', one.version, when(one.expires_ms), h('span', { class: 'mono' }, one.addresses.join(' '))]), 'no node is known'),
    h('h2', {}, 'Names for visitors'), table(['name', 'project', 'should lead to', 'certificate of the mesh ends', 'problem'], names.map((one) => [one.name, `${one.project} / ${one.environment}`, h('span', { class: 'mono' }, one.addresses.join(' ')), when(one.certificate_until_ms), h('span', { class: 'bad' }, one.problem)]), 'no route has a name'),
    known.node && h('p', { class: 'quiet' }, `${known.node.name}: decision ${known.node.slot}, ${local(Math.round(known.node.disk_free_bytes / 1048576))} MiB free, wasmtime ${known.node.wasmtime}`)];
}

const LAST_WORDS_MAX = 24;

/** The newest different things that were said, oldest first, each once, with how often: failing visitors repeat one, and a limit cuts the last. */
export function lastWords(lines) {
  const said = new Map();
  for (const text of lines) {
    const { app, stream, event, message } = readLine(text);
    const key = JSON.stringify([app, stream, event, message]);
    const times = said.has(key) ? said.get(key)[1] + 1 : 1;
    said.delete(key);
    if (event !== 'request' && event !== 'log.dropped') said.set(key, [text, times]);
  }
  return [...said.values()].slice(-LAST_WORDS_MAX);
}

function readLine(text) {
  try { return JSON.parse(text) || {}; } catch { return { message: text }; }
}

export function logLine(text) {
  const said = readLine(text);
  const guest = said.stream === 'guest';
  const words = said.event === 'request' && !guest ? `${said.method} ${said.path} ${said.status}` : said.message;
  return oneLine([String(said.time || '').slice(11, 19), said.level, said.app || said.event, guest ? '|' : '', words].filter(Boolean).join('  '));
}

export function logs(wanted, lines, change) {
  const pick = (name, value, options, words) => h('label', {}, words, h('select', { 'data-field': name, onchange: change }, options.map(([each, shown]) => h('option', { value: each, selected: each === value }, shown))));
  const projects = [...new Set(known.lanes.map((one) => one.project))].map((one) => [one, one]);
  return [h('h1', {}, 'Logs'),
    h('div', { class: 'acts' }, pick('node', wanted.node, known.members.filter((one) => one.standing === 'member').map((one) => [one.node, one.name || one.node.slice(-8)]), 'Node'),
      pick('project', wanted.project, [['', 'all'], ...projects], 'Project'),
      h('label', {}, 'With this text', h('input', { 'data-field': 'contains', value: wanted.contains, onchange: change }))),
    h('pre', { class: 'log', tabindex: '0', 'aria-label': 'log lines, newest last' }, lines.map(logLine).join('\n') || 'no line yet')];
}

export const history = () => [h('h1', {}, 'History'), h('p', { class: 'quiet' }, 'Each decision, who signed it, and why. A decision without a signer was made by the nodes, on their numbers.'), decisions(known.decisions)];
