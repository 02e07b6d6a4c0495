"""What others wrote, on a terminal: it acts on nothing, fakes no line of ours, and breaks no view."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.errors import CommandError
from cli.text.foreign import INDENT, LINE_MAX_CHARS, harmless, one_line, quoted
from cli.text.output import Output
from cli.text.table import table
from cli.views.log_lines import described, is_of_rollout, read

FORGED = (
    "fix a typo\n\ngate\n  approvals none needed\n\npapers\n  author    root (person)\n"
    "  evidence  test PASSED, by a node\n\x1b[8m\x1b[?1049h\u202egnp.exe\u200b"
)


@given(st.text())
def test_nothing_that_acts_is_left_of_any_text(text: str) -> None:
    left = harmless(text)
    assert all(one == "\n" or unicodedata.category(one) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} for one in left)
    assert "\n" not in one_line(text)
    assert len(one_line(text)) <= 8 * (LINE_MAX_CHARS + 5)


def test_ordinary_text_stays_as_it_is_in_any_script() -> None:
    for text in ("fix the front page", "Größe ändern: 3 €", "日本語 テスト", "שלום", "🙂"):
        assert harmless(text) == one_line(text) == text


def test_a_forged_request_has_no_line_that_looks_like_ours() -> None:
    first, *more = quoted(FORGED).split("\n")
    assert first == "fix a typo"
    assert more
    assert all(line.startswith(INDENT) for line in more)
    assert "\x1b" not in quoted(FORGED)
    assert "<202E>" in quoted(FORGED)
    assert "<200B>" in quoted(FORGED)


def test_a_newline_in_a_cell_adds_no_row() -> None:
    made = table(("CHANGE", "REQUEST"), [("abc", FORGED[:50]), ("def", "plain")])
    assert len(made.split("\n")) == 3


@pytest.mark.parametrize("as_json", [False, True])
def test_every_way_out_of_a_command_is_harmless(capsys: pytest.CaptureFixture[str], *, as_json: bool) -> None:
    output = Output(as_json=as_json)
    output.result({"request": FORGED}, FORGED)
    output.anew(FORGED)
    output.note(FORGED)
    output.warn(FORGED)
    output.hint(FORGED)
    output.happened(FORGED)
    output.step(FORGED, FORGED)
    output.line(described(read(json.dumps({"message": FORGED, "stream": "guest"}).encode())), answer=True)
    output.failure(CommandError(FORGED, next_step=FORGED))
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert "\x1b" not in text
        assert "\u200b" not in text.replace('"', "") or as_json


@pytest.mark.parametrize(
    "line",
    [
        b"", b"null", b"[1]", b"{", b"\xff\xfe", b"[" * 5000, b'{"event": "request", "path": 1, "duration_ms": "x"}',
        b'{"app": {"a": 1}, "time": 5, "level": [], "node": null}', b'{"event": "run", "role": [1], "release": {}}',
        b'{"message": "a\\nb\\u001b[2J", "stream": "guest"}',
    ],
)  # fmt: skip
def test_an_odd_line_of_a_peer_is_shown_as_one_line(line: bytes) -> None:
    is_of_rollout(line)
    shown = described(read(line), node=True).plain
    assert "\n" not in shown
    assert "\x1b" not in shown
