"""The admin key is lost: the key on paper names a new one, by the commands of docs/guides/keys.md on a real node."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine
from tests.support.mesh.terminal import Terminal

GROUPS = r"^  ((?:[a-z2-7]{4} ){13}[a-z2-7]{4})$"
GUIDE = Path(__file__).resolve().parents[3] / "docs/guides/keys.md"
ASKED_S = 60


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    new_fleet = Fleet(tmp_path)
    try:
        yield new_fleet
    finally:
        new_fleet.close()


def commands() -> list[str]:
    """The commands of the guide's first section, in order."""
    section = GUIDE.read_text().split("\n## ")[1]
    return [line for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


def test_a_lost_admin_key_is_replaced_by_the_key_on_paper_as_the_guide_says(fleet: Fleet) -> None:
    machine = fleet.found("one")
    lost_name = str(machine.ok("context", "list")["contexts"][0]["admin_key"])
    groups, named = "", {"LOSTKEY": machine.ok("mesh", "admins", "list")["admins"][0]["key"]}
    for line in commands():
        words = [named.get(word, word) for word in line.split()[1:]]
        if words == ["key", "paper"]:
            groups, named["KEY"] = paper(machine)
        elif "--paper" in words:
            (machine.folder / "home" / "keys" / f"{lost_name}.json").unlink()
            assert from_paper(machine, words, groups) == named["KEY"], "the paper holds the key that was added"
            refused = machine.typed("project", "create", "early", "--json")
            assert refused.code != 0, "a recovery key administers nothing"
        else:
            sure = ["-y"] if words[-1] == "renew" or (words[0] == "mesh" and words[-1] != "list") else []
            answer = machine.typed(*words, *sure, "--json", typing=(PASSPHRASE,) * (2 if words[0] == "key" else 1))
            assert answer.code == 0, (line, answer)
            if words[:3] == ["key", "create", "ann-new"]:
                named["NEWKEY"] = answer.json["key"]
    listed = machine.ok("mesh", "admins", "list")
    assert [entry["key"] for entry in listed["admins"]] == [named["NEWKEY"]]
    assert [entry["key"] for entry in listed["recovery"]] == [named["KEY"]]
    machine.typed_ok("project", "create", "shop")
    networks(machine)
    everyday(machine)


def everyday(machine: Machine) -> None:
    """The everyday key may do what it might, as one person with the new admin, and so it is at a second renewal."""
    mine = machine.ok("key", "renew", "-y")
    assert mine["grants"] == 0, "renewed by the guide's last line, and not once more"
    shown = json.loads(machine.get(f"/v1/principals/{mine['key']}"))
    assert shown["problem"] == ""
    assert {"propose", "start"} <= set(shown["verbs"])
    admins = machine.ok("mesh", "admins", "list")["admins"]
    assert admins[0]["key"] in shown["lineage"]


def networks(one: Machine) -> None:
    """The new admin lets apps of an environment reach a private network, and takes it back."""
    one.typed_ok("env", "create", "production", "-y")
    assert one.ok("env", "networks", "production")["networks"] == []
    refused = one.typed("env", "networks", "production", "--allow", "169.254.0.0/16", "-y", "--json")
    assert "169.254.0.0/16 is not private" in str(refused.json["error"])
    one.typed_ok("env", "networks", "production", "--allow", "10.0.5.0/24", "-y")
    assert one.ok("env", "networks", "production")["networks"] == ["10.0.5.0/24"]
    one.typed_ok("env", "networks", "production", "--none", "-y")
    assert one.ok("env", "networks", "production")["networks"] == []


def at_terminal(one: Machine, words: Sequence[str]) -> Terminal:
    """Type a command of freehold at a terminal."""
    started = [sys.executable, "-c", "from cli.main import main; main()", *words]
    return Terminal(shlex.join(started), one.folder, one.environment)


def key_of(shown: str) -> str:
    """The public key that a command showed."""
    answer = re.search(r"^([0-9a-f]{64})$", shown, re.MULTILINE)
    assert answer is not None, shown
    return answer.group(1)


def paper(one: Machine) -> tuple[str, str]:
    """Run `freehold key paper`; return what is written down, and the public key."""
    typed = at_terminal(one, ["key", "paper"])
    try:
        groups = typed.wait_for(GROUPS, ASKED_S).group(1)
        code, shown = typed.end(ASKED_S, [("Type all 14 groups", groups)])
    finally:
        typed.kill()
    assert code == 0, shown
    return groups, key_of(shown)


def from_paper(one: Machine, words: Sequence[str], groups: str) -> str:
    """Run the command that takes the paper's key; return its public part."""
    typed = at_terminal(one, words)
    try:
        asked = [("The 14 groups", groups), ("A passphrase for", PASSPHRASE), ("The same again", PASSPHRASE)]
        code, shown = typed.end(ASKED_S, asked)
    finally:
        typed.kill()
    assert code == 0, shown
    return key_of(shown)
