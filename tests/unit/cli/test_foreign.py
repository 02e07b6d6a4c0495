"""What others wrote, on a terminal: it acts on nothing, fakes no line of ours, and breaks no view."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.errors import CommandError
from cli.text.foreign import (
    INDENT,
    LINE_MAX_CHARS,
    Foreign,
    builtins_of,
    for_model,
    foreign,
    harmless,
    json_text,
    one_line,
    plain,
    quoted,
)
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
    assert all(text == "\n" or unicodedata.category(text) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} for text in left)
    assert "\n" not in one_line(text)
    assert len(one_line(text)) <= 8 * (LINE_MAX_CHARS + 5)


def test_ordinary_text_stays_as_it_is_in_any_script() -> None:
    for text in ("fix the front page", "Größe ändern: 3 €", "日本語 テスト", "שלום", "🙂"):
        assert harmless(text) == one_line(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("r\u0430ypal", "r<0430>ypal"), ("sh\u03bfp", "sh<03BF>p"), ("\uff46ull", "<FF46>ull"), ("x\u00a0y", "x<00A0>y"),
        ("\U0001d41aadmin", "<1D41A>admin"), ("a\u3164b", "a<3164>b"), ("a\u2800b", "a<2800>b"),
        ("x" + "\u0335" * 4, "x\u0335\u0335<0335><0335>"), ("\U000e0068\U000e0069", "<E0068><E0069>"),
        ("a\ufe00", "a<FE00>"), ("\x9b2J", "<009B>2J"), ("\x7f", "<007F>"),
    ],
)  # fmt: skip
def test_letters_that_look_like_others_or_like_nothing_are_shown_by_number(text: str, shown: str) -> None:
    assert harmless(text) == shown


@pytest.mark.parametrize(
    "text", ["\u041f\u0440\u0438\u0432\u0435\u0442, world", "\u03b1 and \u03b2", "m\u00b2", "5 \u00b5s"]
)
def test_a_word_of_one_script_beside_words_of_another_is_no_look_alike(text: str) -> None:
    assert harmless(text) == text


@given(st.text())
def test_foreign_text_is_harmless_however_it_is_put_into_a_line_and_whole_for_programs(text: str) -> None:
    told = foreign({"said": [text], text: 1})
    entry = told["said"][0]
    assert (type(entry) is Foreign) is (quoted(text) != text)
    for candidate in (f"{entry}", str(entry), "".join([entry]), entry + "", "%s" % entry, entry.strip(), entry[:9]):  # noqa: UP031
        assert harmless(candidate) == candidate
        assert all(line.startswith(INDENT) for line in candidate.split("\n")[1:-1])
    assert plain(entry) == text
    assert json.loads(json_text(told)) == {"said": [text], text: 1} if text != "said" else True
    assert not [text for text in json_text(told) if unicodedata.category(text) in {"Cc", "Cf", "Co", "Zl", "Zp"}]
    assert msgspec.json.encode(entry, enc_hook=plain) == msgspec.json.encode(text)


def test_a_model_reads_what_a_person_sees() -> None:
    class Told(msgspec.Struct):
        text: str
        more: tuple[str, ...]

    answer = msgspec.convert(foreign({"text": "a\u200bb", "more": ["\U000e0041", "two\nlines"]}), Told)
    assert json.loads(for_model(answer)) == {"text": "a<200B>b", "more": ["<E0041>", "two\nlines"]}
    assert builtins_of(answer) == {"text": "a\u200bb", "more": ("\U000e0041", "two\nlines")}


ROOT = Path(__file__).parents[3]
WRITES = {
    # Who may write to a terminal, and what it does there.
    "cli/text/output.py": "the boundary", "cli/frame.py": "the help of a command that was called without arguments",
    "cli/commands/mesh/node.py": "the daemon's own log, disarmed line by line", "cli/mcp/server.py": "one word as it stops",
}  # fmt: skip


STREAMS = re.compile(r"(sys\.(__)?std(out|err)(__)?)\.(buffer\.)?(write|writelines)|(rich\.)?print|click\.s?echo|pprint|"
                     r"traceback\.print_exc(eption)?")  # fmt: skip


def raw_writes(path: Path) -> list[int]:
    """Lines that write to a terminal: print, click.echo, a console of rich, a stream of sys."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Call) and STREAMS.fullmatch(ast.unparse(node.func)))
        or (isinstance(node, ast.ImportFrom) and node.module == "rich.console")
    ]


def test_nobody_writes_to_a_terminal_beside_the_boundary() -> None:
    document = {
        str(path.relative_to(ROOT)): raw_writes(path)
        for folder in ("cli", "node", "runtime", "protocols")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "templates" not in path.parts and "guest" not in path.parts and path.name != "__main__.py"
    }
    wrote = {name for name, lines in document.items() if lines}
    modules = {
        "protocols/state/transitions.py",
        "runtime/sandbox/compiler.py",
        "runtime/native/build.py",
    }  # a page; the tool that compiles, to its parent; the one that `make native` runs
    assert wrote - modules == set(WRITES), {name: document[name] for name in wrote ^ set(WRITES)}
    handler = (ROOT / "cli/commands/mesh/node.py").read_text()
    assert handler.count("sys.stdout.write(") == len(
        re.findall(r"sys\.stdout\.write\((escaped|fold\(one_line|harmless)\(", handler)
    )


def test_answers_of_a_node_are_foreign_wherever_they_are_read() -> None:
    """In the client each answer in JSON passes `foreign`; nobody else decodes what a node said."""
    client = (ROOT / "cli/access/client.py").read_text()
    decodes = re.findall(r"^.*msgspec\.json\.decode\(.*$", client, re.MULTILINE)
    assert decodes
    assert all("foreign(msgspec.json.decode(" in line for line in decodes), decodes


def test_a_forged_request_has_no_line_that_looks_like_ours() -> None:
    first, *more = quoted(FORGED).split("\n")
    assert first == "fix a typo"
    assert more
    assert all(line.startswith(INDENT) for line in more)
    assert "\x1b" not in quoted(FORGED)
    assert "<202E>" in quoted(FORGED)
    assert "<200B>" in quoted(FORGED)


def test_a_newline_in_a_cell_adds_no_row() -> None:
    text = table(("CHANGE", "REQUEST"), [("abc", FORGED[:50]), ("def", "plain")])
    assert len(text.split("\n")) == 3


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
