"""What a machine holds to at run time: each invariant is broken by hand once, and the next event finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from protocols.chain.ballots import NO_BALLOT, Ballot
from protocols.invariants import InvariantError, ensure
from protocols.machine import PeerId
from tests.support.protocols.chain_net import ChainNet

ROOT = Path(__file__).parents[3]


def test_an_invariant_says_its_sentence() -> None:
    ensure(True, "all is well")
    with pytest.raises(InvariantError, match="the sentence"):
        ensure(False, "the sentence")


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("accepted was promised", {"accepted_ballot": Ballot(9, PeerId("n"), b""), "promised": NO_BALLOT}),
        ("slot after the head", {"slot": 7}),
        (
            "keeps its decision",
            {"accepted_ballot": Ballot(1, PeerId("n"), b""), "promised": Ballot(1, PeerId("n"), b"")},
        ),
    ],
)
def test_the_chain_ends_rather_than_speak_from_a_state_it_excludes(said: str, change: dict[str, object]) -> None:
    net = ChainNet(1)
    chain = next(iter(net.nodes.values())).chain
    acceptor = chain._at.acceptor
    acceptor.record = msgspec.structs.replace(acceptor.record, **change)
    with pytest.raises(InvariantError, match=said):
        chain._check_invariants()


def test_a_node_refuses_to_run_without_its_assertions(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from node.daemon import Daemon\n"
        "from node.config import NodeConfig\nfrom node.errors import ConfigError\n"
        "try: Daemon(Path('.'), NodeConfig('a'))\n"
        "except ConfigError as error: print(error.exit_code, error, '|', error.advice)\n"
    )

    def said(*flags: str, **environment: str) -> str:
        command = [sys.executable, *flags, "-c", code, str(ROOT)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    for answer in (said("-O"), said("-OO"), said(PYTHONOPTIMIZE="1")):
        assert answer.startswith("64 a node does not run under python -O")
        assert "without -O" in answer
    assert said() == ""
