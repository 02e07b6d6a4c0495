// The page of `freehold passkey add` and `freehold approve --passkey`: one question, one touch.
import { clean, h, unb64 } from './common.js';
import { ask, takeCode } from './link.js';
import { approvalFacts, create, readApproval, touch, why } from './touch.js';

const code = takeCode();
const body = document.getElementById('body');
const said = document.getElementById('said');

function show(title, ...parts) {
  document.getElementById('title').textContent = title;
  document.title = `Freehold: ${title}`;
  body.replaceChildren(...parts);
}

function tell(text, kind) {
  said.className = kind;
  said.textContent = clean(text);
}

function button(words, act) {
  const made = h('button', { class: 'main', type: 'button' }, words);
  made.addEventListener('click', async () => {
    made.disabled = true;
    tell('Waiting for your passkey.', 'quiet');
    try {
      const [status, answer] = await ask(code, '/answer', await act());
      if (status === 200) {
        show('Done', h('p', {}, 'Go back to the terminal. This page can be closed.'));
        return tell('', '');
      }
      tell((answer && answer.why) || 'The command no longer waits: run it again.', 'bad');
    } catch (error) {
      tell(why(error), 'bad');
    }
    made.disabled = false;
    return undefined;
  });
  return made;
}

const [status, question] = await ask(code, '/question');
if (status !== 200) {
  show('This link is over', h('p', {}, 'Run the command again and open the link that it prints.'));
} else if (question.kind === 'create') {
  show('Make a passkey',
    h('p', {}, `It will approve changes in the mesh ${question.mesh} in your name, from this page only. `,
      'Your passphrase, typed at the terminal afterwards, lets it.'),
    button('Make the passkey', () => create(question)));
} else {
  const statement = unb64(question.statement);
  show('Approve a change',
    h('pre', { tabindex: '0', 'aria-label': 'what the change does' }, question.text),
    h('h2', {}, 'What you sign'),
    approvalFacts(readApproval(statement)),
    button('Approve with passkey', () => touch(question.rp, question.credentials, statement)));
}
