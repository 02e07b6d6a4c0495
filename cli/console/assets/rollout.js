// How a rollout is drawn, here and in an agent's window: its stages, and what each node of the stage says with its numbers.
import { h } from './common.js';

export const panel = (kind, ...parts) => h('section', { class: `panel ${kind}` }, ...parts);
export const none = (words) => h('p', { class: 'quiet' }, words);

export function table(names, rows, words) {
  if (!rows.length) return none(words);
  const number = (index) => (names[index].startsWith('#') ? 'number' : '');
  const plain = names.map((name) => name.replace('#', ''));
  // The roles are those that the elements have; a narrow window shows rows as cards, and the styles for that take them away.
  const head = h('tr', { role: 'row' }, plain.map((name, index) => h('th', { scope: 'col', role: 'columnheader', class: number(index) }, name)));
  const line = (row) => h('tr', { role: 'row' }, row.map((cell, index) => h('td', { role: 'cell', class: number(index), 'data-of': plain[index] }, cell)));
  return h('div', { class: 'wide', tabindex: '0', role: 'region', 'aria-label': words }, h('table', { role: 'table' }, h('thead', { role: 'rowgroup' }, head), h('tbody', { role: 'rowgroup' }, rows.map(line))));
}

export function stages(rollout) {
  const kind = (index) => (index < rollout.stage ? 'over' : index > rollout.stage ? '' : rollout.verdicts.some((one) => one.verdict === 'fail') ? 'failed' : 'open');
  return [
    h('p', {}, `Stage ${rollout.stage + 1} of ${rollout.stages.length}: ${rollout.cohort.length} of ${rollout.stages[rollout.stages.length - 1]} nodes. ${[rollout.assessment, rollout.reason].filter(Boolean).join(': ')}`),
    h('div', { class: 'bar', 'aria-hidden': 'true' }, rollout.stages.map((_, index) => h('span', { class: kind(index) }))),
  ];
}

const share = (one) => (one.requests ? `${((100 * one.errors) / one.requests).toFixed(1)} %` : '-');
const word = (verdict) => h('span', { class: { pass: 'good', fail: 'bad' }[verdict] || 'quiet' }, verdict || 'not heard');
const meter = (one, nameOf) => h('meter', { min: '0', max: '1', low: '0.01', high: '0.05', optimum: '0', value: one.requests ? String(one.errors / one.requests) : '0', 'aria-label': `share of errors on ${nameOf(one.node)}` });

/** A row for each node: its verdict and numbers. `nameOf` gives a node's name. */
export function grid(numbers, words, nameOf) {
  return table(['node', 'verdict', '#requests', '#errors', '#share of errors', '#healthy', 'why'],
    numbers.map((one) => [nameOf(one.node), word(one.verdict), String(one.requests), String(one.errors), [meter(one, nameOf), ' ', share(one)], `${Math.round(one.healthy_ms / 1000)} s`, one.reason]), words);
}

/** Each node of the stage with its word, also those that said none yet. */
export const heard = (rollout) => rollout.cohort.map((node) => rollout.verdicts.find((said) => said.node === node) || { node, verdict: '', requests: 0, errors: 0, healthy_ms: 0, reason: '' });
