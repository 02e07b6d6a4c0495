"""The rollout view in an agent's window, in a real browser: a host of MCP Apps gives it answers, and it draws them as text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cli.console.serving import asset
from cli.text.foreign import harmless, one_line
from node.api import rollout_page
from tests.support.browser import Browser, Page

CHANGE = "ab" * 32
NODES = ("n" * 58, "m" * 58)
HOSTILE = "<img src=x onerror=\"parent.document.title='taken'\"> \u202egnp.exe"
POLICY = "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; connect-src 'none'"
HOST = """(async (page) => {
  window.heard = []; window.answers = {};
  const frame = document.createElement('iframe');
  const opened = new Promise((done) => window.addEventListener('message', ({ data, source }) => {
    if (source !== frame.contentWindow) return;
    heard.push(data);
    const say = (message) => frame.contentWindow.postMessage({ jsonrpc: '2.0', ...message }, '*');
    window.say = say;
    if (data.method === 'ui/initialize') say({ id: data.id, result: { protocolVersion: '2026-01-26',
      hostInfo: { name: 'test', version: '1' }, hostCapabilities: { serverTools: {} }, hostContext: { theme: 'dark' } } });
    if (data.method === 'ui/notifications/initialized') done();
    if (data.method === 'tools/call') say({ id: data.id, result: answers[data.params.name] });
  }));
  frame.sandbox = 'allow-scripts allow-same-origin';
  frame.srcdoc = page;
  document.body.append(frame);
  await opened;
})"""


def rollout(**more: Any) -> dict[str, Any]:
    verdict = {
        "node": NODES[0],
        "verdict": "pass",
        "healthy_ms": 8_000,
        "requests": 200,
        "errors": 3,
        "reason": HOSTILE,
    }
    return {
        "id": "01" * 32, "change": CHANGE, "release": "cd" * 32, "stage": 1, "stages": [1, 2, 3], "cohort": list(NODES),
        "paused": "", "assessment": "judging", "reason": "", "verdicts": [verdict], **more,
    }  # fmt: skip


def beside_files(**more: Any) -> dict[str, Any]:
    """What the tool answers from the server beside the project's files."""
    return {
        "change": CHANGE, "environment": "production", "state": "candidate", "start": None, "rollout": rollout(),
        "untrusted_reasons": {}, "untrusted_request": HOSTILE, "next_step": "ask again", **more,
    }  # fmt: skip


def on_node(state: str) -> dict[str, Any]:
    """What the node's own server answers."""
    where = {"project": "greeter", "environment": "production"}
    return {"untrusted_answer": {"id": CHANGE, **where, "request": HOSTILE, "state": state, "start": None}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    new_browser = Browser()
    yield new_browser
    new_browser.close()


@pytest.fixture
def page(browser: Browser) -> Page:
    new_page = browser.page()
    framed = rollout_page.page().replace(
        "<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    )
    new_page.js(f"{HOST}({json.dumps(framed)})")
    return new_page


def tell(page: Page, told: dict[str, Any], **answers: Any) -> None:
    """Have the host pass on a tool's answer, and keep what it answers when the page asks."""
    items = {name: {"content": [], "structuredContent": answer} for name, answer in answers.items()}
    page.js(f"answers = {json.dumps(items)}")
    page.js("say({method: 'ui/notifications/tool-input', params: {arguments: {}}})")
    result = {"content": [{"type": "text", "text": json.dumps(told)}]}
    page.js(f"say({{method: 'ui/notifications/tool-result', params: {json.dumps(result)}}})")


def shows(page: Page, words: str) -> str:
    inside = "document.querySelector('iframe').contentDocument.body.innerText"
    page.until(f"{inside}.includes({json.dumps(words)})", 20)
    return str(page.js(inside))


def test_it_draws_stages_and_numbers_and_asks_again_until_the_release_runs(page: Page) -> None:
    ended = beside_files(state="base", rollout=None)
    tell(page, beside_files(), rollout_status=ended)
    shown = shows(page, "Stage 2 of 3: 2 of 3 nodes")
    for words in ("..nnnnnn", "pass", "200", "1.5 %", "..mmmmmm", "not heard"):
        assert words in shown, shown
    shows(page, "Change abababababab: runs")
    asked = [entry for entry in page.js("heard") if entry.get("method") == "tools/call"]
    assert [entry["params"] for entry in asked] == [{"name": "rollout_status", "arguments": {"change": CHANGE}}]
    assert any(entry.get("method") == "ui/notifications/size-changed" for entry in page.js("heard"))
    assert page.js("document.querySelector('iframe').contentDocument.documentElement.style.colorScheme") == "dark"


def test_of_a_nodes_answer_it_finds_the_rollout_by_the_change_and_no_other(page: Page) -> None:
    lanes = [{"project": "greeter", "environment": name, "base": None, "rollout": row} for name, row in (
        ("production", rollout(change="ef" * 32, stages=[1, 7])), ("staging", rollout()))]  # fmt: skip
    tell(page, on_node("candidate"), status={"untrusted_answer": lanes}, rollout_status=on_node("aborted"))
    assert "7" not in shows(page, "Stage 2 of 3").partition("Stage")[2].splitlines()[0]
    shows(page, "aborted")
    tell(page, {"untrusted_answer": lanes}, status={"untrusted_answer": []})
    shows(page, "staging")
    shows(page, "There is no project yet.")


def test_text_of_others_is_text_and_what_is_wrong_is_told(page: Page) -> None:
    page.js("document.title = 'mine'")
    tell(page, beside_files(), rollout_status=beside_files())
    shown = shows(page, "onerror")
    assert "<202E>gnp.exe" in shown
    assert "\u202e" not in shown
    assert page.js("document.querySelector('iframe').contentDocument.querySelectorAll('img, iframe, a').length") == 0
    tell(page, {"error": {"kind": "no-node", "message": f"no node answers {HOSTILE}", "next_step": "start it"}})
    assert "no node answers <img" in shows(page, "It did not work")
    assert page.js("document.title") == "mine"
    assert not [text for text in page.said if "Content Security Policy" in text], page.said


LETTERS = (
    "plain", "p\u0430ypal", "\u043f\u0440\u0438\u0432\u0435\u0442", "a\u202egnp", "a\nb", "\uff21bc",
    "x" + "\u0301" * 4, "caf\u00e9", "a\u00a0b", "\u2192 ok", "\u03b1\u03b2", "x\u00b2", "\u200b", "\u2800", "z\ufe0f",
    "\x1b[2J", "\u0410dmin", "admin\u0410",
)  # fmt: skip


def test_text_of_others_is_shown_as_the_command_line_shows_it(browser: Browser) -> None:
    page = browser.page()
    source = base64.b64encode(asset("common.js")).decode()
    cleaned = f"{json.dumps(LETTERS)}.map((one) => [made.clean(one), made.oneLine(one)])"
    shown = page.js(f"import('data:text/javascript;base64,{source}').then((made) => {cleaned})")
    assert shown == [[harmless(text), one_line(text)] for text in LETTERS]
