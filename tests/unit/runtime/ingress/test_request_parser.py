"""The parser of requests over the corpus: cut anywhere it means the same, and no rule of it can be taken away unseen."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from runtime.ingress import chunked, request_parser
from runtime.ingress.incoming import Incoming
from runtime.ingress.settings import IngressSettings
from tests.support.runtime.ingress_corpus import CASES, CLOSED, FOLLOWING, REFUSED, SERVED, Case

ADDRESS = ("target", "Host", "OPTIONS", "tunnel", "app's limit")
"""What is refused behind the parser: by the address or the app's limit."""


ENDLESS = b"GET /hello HTTP/1.1\r\nHost: app.test\r\nX: " + b"y" * 70_000


class Told:
    """Writes down what a parser tells."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.body = b""

    def on_request(self, incoming: Incoming) -> None:
        self.said.append((
            incoming.method, incoming.target, incoming.keep_alive, incoming.length, incoming.chunked,
            tuple(incoming.headers),
        ))  # fmt: skip

    def on_data(self, data: bytes) -> None:
        self.body += data

    def on_end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        self.said.append((self.body, tuple(trailers)))
        self.body = b""


def read(data: bytes, parser_of: Any = request_parser, *, cut: int = 1 << 30) -> tuple[Any, ...]:
    """All that a parser tells of `data`, and the status that it ends with."""
    told = Told()
    parser = parser_of.RequestParser(told, IngressSettings())
    try:
        for start in range(0, len(data), cut):
            parser.feed(data[start : start + cut])
    except parser_of.StopParsing as refusal:
        return (*told.said, told.body, refusal.problem.status)
    return (*told.said, told.body)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_parser_refuses_what_is_refused_and_reads_the_rest_whole(case: Case) -> None:
    entries = read(case.data + FOLLOWING)
    if case in REFUSED and not any(word in case.name for word in ADDRESS):
        assert entries[-1] == case.statuses[0]
    elif case in SERVED:
        assert [entry[0] for entry in entries[:-1]][2:] == ["GET", b""], "the following request"
        assert entries[-1] == b""
        if b"abc" in case.data:
            assert entries[1][0] == b"abc"
    elif case in CLOSED:
        assert entries[0][2] is False, "it is not kept alive"


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 11, 64])
def test_an_input_cut_anywhere_means_the_same(cut: int) -> None:
    for case in CASES:
        if len(case.data) > 20_000 and cut < 64:
            continue
        whole, pieces = read(case.data + FOLLOWING), read(case.data + FOLLOWING, cut=cut)
        if whole[-1] in {400, 501}:
            # An unknown method that came in part is not told from noise, and what was told before differs by the cut.
            assert pieces[-1] in {400, 501}, case.name
        elif whole[-1] == 431:
            assert pieces[-1] == 431, case.name
        else:
            assert pieces == whole, case.name


MUTANTS: dict[str, tuple[str, str, str]] = {
    "a coding beside chunked is taken": ("request_parser", '!= b"chunked"', 'not in {b"chunked", b"gzip, chunked"}'),
    "version 1.0 with chunks is kept alive": ("request_parser", " and not incoming.http_1_0", ""),
    "other versions are read": ("request_parser", 'if version not in {"1.1", "1.0"}', 'if version == "0.9"'),
    "version 0.9 is read": ("request_parser", 'if version not in {"1.1", "1.0"}', 'if version == "2.0"'),
    "methods of other protocols are passed on": ("request_parser", "if incoming.method not in METHODS", "if False"),
    "an unknown method is noise": ("request_parser", "BAD_METHOD if unknown else MALFORMED", "MALFORMED"),
    "noise is an unknown method": ("request_parser", "BAD_METHOD if unknown else MALFORMED", "BAD_METHOD"),
    "expectations are ignored": ("request_parser", "raise StopParsing(EXPECTATION)", "pass"),
    "a head without an end has no limit": ("request_parser", "if self._head_bytes > self._settings.", "if 0 > self._settings."),
    "fields have no limit of bytes": ("request_parser", "self._fields_bytes > settings.fields_max_bytes or ", ""),
    "fields have no limit of number": ("request_parser", " or len(self._headers) > settings.fields_max", ""),
    "white space behind a value is kept": ("request_parser", '.rstrip(b" \\t")', ""),
    "a target has no limit": ("request_parser", "if len(self._target) > self._settings.target_max_bytes", "if False"),
    "the parser is kept behind a body": ("request_parser", "if incoming.chunked or incoming.length:", "if incoming.chunked:"),
    "the empty line is not looked for across pieces": ("request_parser", "if across >= 0", "if across > 1000"),
    "a chunk's end is not looked at": ("chunked", 'if data[at : at + 1] != (b"\\r" if left == 2 else b"\\n")', "if False"),
    "lines may end with LF": ("chunked", 'if not line.endswith(b"\\r\\n")', "if False"),
    "white space before a size": ("chunked", 'rb"0*(', 'rb" *0*('),
    "white space behind a size": ("chunked", '(?:%b|%b))?)*" %', '(?:%b|%b))?)*[ \\t]*" %'),
    "no white space around extensions": ("chunked", '(?:[ \\t]*;[ \\t]*%b', "(?:;%b"),
    "a size may have any length": ("chunked", "{1,15}", "{1,30}"),
    "extensions cost nothing": ("chunked", "if self._overhead > OVERHEAD_MAX_BYTES", "if False"),
    "a line has no limit": ("chunked", "if len(self._line) + len(piece) > limit + 2", "if False"),
    "trailers have no limit": ("chunked", "or len(self.trailers) >= self._fields_max", "or False"),
    "trailers are not read": ("chunked", "raise ChunkError\n        self._trailers", "return\n        self._trailers"),
    "the last chunk ends the body": ("chunked", "            self._in_trailers = True\n", "            self.done = True\n"),
}  # fmt: skip


def mutated(module: str, old: str, new: str) -> Any:
    """The parser with one place of its source changed."""
    name, module_type = {"request_parser": request_parser, "chunked": chunked}[module], types.ModuleType(module)
    source = Path(str(name.__file__)).read_text()
    assert source.count(old) == 1, f"the mutant is of another source: {old}"
    exec(compile(source.replace(old, new), module, "exec"), module_type.__dict__)
    if module == "request_parser":
        return module_type
    whole = types.ModuleType("request_parser")
    exec(compile(Path(str(request_parser.__file__)).read_text(), "request_parser", "exec"), whole.__dict__)
    whole.__dict__.update(ChunkDecoder=module_type.ChunkDecoder, ChunkError=module_type.ChunkError)
    return whole


@pytest.mark.parametrize("name", MUTANTS)
def test_no_rule_of_the_parser_can_be_taken_away(name: str) -> None:
    mutant = mutated(*MUTANTS[name])
    for data in (*[case.data + FOLLOWING for case in CASES], ENDLESS):
        for cut in (1 << 30, 3):
            try:
                if read(data, mutant, cut=cut) != read(data, cut=cut):
                    return
            except Exception:  # a mutant that crashes is seen too
                return
    raise AssertionError("the corpus does not notice it")
