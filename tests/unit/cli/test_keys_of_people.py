"""Keys of people: passphrases, a key on paper, who is an admin by whose signatures; all without a node."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cli.access import contexts
from cli.access.endings import GrantEnd, ending_of, keep, known
from cli.access.paper_key import TEXT_CHARACTERS, from_paper, on_paper
from cli.access.principals import Principal, principal_of
from cli.access.statements import add_signature, read_statement, write_statement
from cli.commands.mesh.admins import key_named, plan_of
from cli.commands.principals import key as commands
from cli.commands.principals.key import key
from cli.errors import CommandError, UsageError
from cli.text.reminders import remind, reminders, told
from protocols.api_models import RightsView
from protocols.envelope import decode
from protocols.keys import Ed25519Signer
from protocols.state.commands import RECOVERY, Command, CreateProject, SetAdmins, sign_command
from protocols.state.governance import RECOVERY_RULES
from protocols.state.model import MeshState
from protocols.trust.grants import Grant
from tests.support.protocols.mesh_world import MeshWorld

MESH = b"m" * 32
SIGNERS = tuple(sorted((Ed25519Signer(bytes([number]) * 32) for number in range(1, 5)), key=lambda one: one.public_key))
KEYS = tuple(signer.public_key for signer in SIGNERS)
ENTROPY = b"e" * 28
STATE: MeshState = replace(MeshWorld().state, admins=KEYS[:2], threshold=1)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(contexts, "SCRYPT_N", 1 << 4)


def typed(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """What a person types at the prompts, in this order."""
    left = list(answers)
    for module in ("cli.commands.principals.key", "cli.access.prompts"):
        monkeypatch.setattr(f"{module}.ask_passphrase", lambda _prompt: left.pop(0))


# --- passphrases ------------------------------------------------------------------------------------------------------


def test_a_passphrase_is_changed_and_the_key_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contexts.store_sealed("ann", b"s" * 32, "old passphrase", ENTROPY)
    typed(monkeypatch, "old passphrase", "new passphrase", "new passphrase")
    key.main(["passphrase", "ann"], standalone_mode=False)
    assert contexts.is_sealed("ann")
    assert contexts.open_sealed("ann", "new passphrase").public_key == before.public_key == contexts.public_key("ann")
    with pytest.raises(CommandError, match="the passphrase is wrong"):
        contexts.open_sealed("ann", "old passphrase")
    assert contexts.key_path("ann").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (("wrong passphrase",), "the passphrase is wrong"), (("old passphrase", "short"), "at least 8"),
        (("old passphrase", "one passphrase", "two passphrase"), "differ"),
    ],
)  # fmt: skip
def test_a_change_that_fails_leaves_the_key_as_it_was(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts.store_sealed("ann", b"s" * 32, "old passphrase", ENTROPY)
    held = contexts.key_path("ann").read_bytes()
    typed(monkeypatch, *answers)
    with pytest.raises(SystemExit):
        key.main(["passphrase", "ann"], standalone_mode=False)
    assert why in capsys.readouterr().err
    assert contexts.key_path("ann").read_bytes() == held


def test_an_everyday_key_gets_a_passphrase_and_loses_it_and_an_admins_never_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts.store_plain("me", b"s" * 32)
    typed(monkeypatch, "new passphrase", "new passphrase")
    key.main(["passphrase", "me"], standalone_mode=False)
    assert contexts.is_sealed("me")
    typed(monkeypatch, "new passphrase")
    key.main(["passphrase", "me", "--remove", "-y"], standalone_mode=False)
    assert contexts.open_plain("me").public_key == Ed25519Signer(b"s" * 32).public_key
    contexts.store_sealed("ann", b"t" * 32, "old passphrase", ENTROPY)
    contexts.write_context("home", contexts.Context("ab" * 32, "/x", "me", admin="ann"))
    with pytest.raises(SystemExit):
        key.main(["passphrase", "--remove", "-y"], standalone_mode=False)
    assert "always opens with a passphrase" in capsys.readouterr().err
    assert contexts.is_sealed("ann")


def test_a_new_key_is_sealed_and_can_become_the_admin_key_of_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts.store_plain("me", b"s" * 32)
    contexts.write_context("home", contexts.Context("ab" * 32, "/x", "me"))
    typed(monkeypatch, "new passphrase", "new passphrase")
    key.main(["create", "ann", "--use"], standalone_mode=False)
    assert contexts.is_sealed("ann")
    assert contexts.current_context()[1].admin == "ann"


# --- paper ------------------------------------------------------------------------------------------------------------


def test_a_key_on_paper_is_read_as_it_was_written_whatever_the_spacing() -> None:
    for _ in range(50):
        seed = secrets.token_bytes(32)
        text = on_paper(seed)
        assert [len(group) for group in text.split()] == [4] * 14
        assert (
            from_paper(text) == from_paper(text.upper().replace(" ", "-")) == from_paper(text.replace(" ", "")) == seed
        )


def test_each_wrong_letter_and_two_that_changed_places_are_noticed() -> None:
    text = on_paper(b"s" * 31 + b"t").replace(" ", "")
    assert len(text) == TEXT_CHARACTERS
    for index in range(TEXT_CHARACTERS):
        other = "a" if text[index] != "a" else "b"
        with pytest.raises(UsageError) as told:
            from_paper(text[:index] + other + text[index + 1 :])
        assert text[:8] not in str(told.value), "nothing of it is shown"
    swapped = next(position for position in range(TEXT_CHARACTERS - 1) if text[position] != text[position + 1])
    with pytest.raises(UsageError, match="a letter is wrong"):
        from_paper(text[:swapped] + text[swapped + 1] + text[swapped] + text[swapped + 2 :])
    for bad in ("", text[:-1], text + "a", text[:-1] + "1", text[:-1] + "!"):
        with pytest.raises(UsageError):
            from_paper(bad)


def test_a_key_from_paper_is_kept_under_a_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = b"p" * 32
    typed(monkeypatch, on_paper(seed), "new passphrase", "new passphrase")
    key.main(["create", "rescue", "--paper"], standalone_mode=False)
    assert contexts.open_sealed("rescue", "new passphrase").public_key == Ed25519Signer(seed).public_key


def test_a_key_on_paper_is_shown_to_nobody_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        key.main(["paper", "--json"], standalone_mode=False)
    said = capsys.readouterr()
    assert "needs-person" in said.out + said.err
    assert commands.on_paper is on_paper


# --- admins -----------------------------------------------------------------------------------------------------------


def test_a_plan_names_who_comes_and_goes_and_what_it_makes_easier() -> None:
    plan = plan_of(STATE, [KEYS[2]], [], None)
    assert (plan.after, plan.threshold) == (KEYS[:3], 1)
    assert f"  + {KEYS[2].hex()}" in plan.lines
    assert any("decides alone" in line for line in plan.lines)
    assert plan_of(STATE, [], [KEYS[0]], None).after == (KEYS[1],)
    both = plan_of(STATE, [], [], 2)
    assert any("nobody administers the mesh any more" in line for line in both.lines)
    assert any("fewer signatures" in line for line in plan_of(replace(STATE, threshold=2), [], [], 1).lines)
    assert plan_of(replace(STATE, threshold=2), [], [KEYS[0]], None).threshold == 1, "never more than there are keys"


@pytest.mark.parametrize(
    ("added", "removed", "threshold"),
    [((0,), (), None), ((), (2,), None), ((), (0, 1), None), ((), (), 3), ((), (), 1), ((), (), None)],
)
def test_a_plan_that_could_not_be_decided_is_refused(
    added: tuple[int, ...], removed: tuple[int, ...], threshold: int | None
) -> None:
    with pytest.raises(UsageError):
        plan_of(STATE, [KEYS[number] for number in added], [KEYS[number] for number in removed], threshold)


def test_a_plan_keeps_a_key_for_recovery_and_says_what_it_may() -> None:
    state = replace(STATE, rules_version=RECOVERY_RULES)
    content = RECOVERY + KEYS[3]
    plan = plan_of(state, [content], [], None)
    assert (plan.after, plan.threshold) == (tuple(sorted((*KEYS[:2], content))), 1)
    assert f"  + {KEYS[3].hex()}  for recovery alone" in plan.lines
    assert any("alone can name other admins" in line for line in plan.lines)
    assert any("1 of 2 admin keys" in line for line in plan.lines), "it counts among nobody's signatures"
    turned = plan_of(state, [RECOVERY + KEYS[1]], [], None)
    assert turned.after == tuple(sorted((KEYS[0], RECOVERY + KEYS[1]))), "an admin's key becomes that alone"
    both = replace(state, admins=tuple(sorted((*KEYS[:2], content))), threshold=2)
    assert not any("nobody administers" in line for line in plan_of(both, [KEYS[2]], [], 3).lines)
    for added, removed, threshold in (([content], [], 3), ([], list(KEYS[:2]), None)):
        with pytest.raises(UsageError):
            plan_of(
                replace(state, admins=tuple(sorted((*KEYS[:2], content)))) if removed else state,
                added,
                removed,
                threshold,
            )
    with pytest.raises(UsageError, match="needs rules"):
        plan_of(replace(state, rules_version=RECOVERY_RULES - 1), [content], [], None)


def test_a_key_is_named_whole_or_by_the_beginning_of_an_admins() -> None:
    assert key_named(KEYS[3].hex()) == KEYS[3]
    assert key_named(KEYS[0].hex()[:10], KEYS[:2]) == KEYS[0]
    for text, admins in ((KEYS[0].hex()[:10], ()), (KEYS[0].hex()[:7], KEYS[:2]), (KEYS[3].hex()[:10], KEYS[:2])):
        with pytest.raises(UsageError):
            key_named(text, admins)


def statement(threshold: int = 2) -> str:
    wanted = Command(b"i" * 16, SetAdmins(KEYS[:3], threshold), expect=7)
    return write_statement(sign_command([SIGNERS[0]], MESH, wanted))


def test_a_statement_gathers_signatures_and_nobody_who_carries_it_can_change_it() -> None:
    signed, command, action = read_statement(statement(), MESH)
    assert (command.expect, action.admins, action.threshold) == (7, KEYS[:3], 2)
    both = add_signature(signed, MESH, SIGNERS[1])
    assert [signature.key for signature in both.signatures] == list(KEYS[:2])
    assert add_signature(both, MESH, SIGNERS[1]).signatures == both.signatures, "the same admin twice counts once"
    assert read_statement(write_statement(both), MESH)[0] == both
    other = replace(both, payload=read_statement(statement(1), MESH)[0].payload)
    for bad, mesh in ((write_statement(other), MESH), (write_statement(both), b"n" * 32)):
        with pytest.raises(UsageError, match="not good in this mesh"):
            read_statement(bad, mesh)


def test_a_statement_about_anything_else_is_not_signed_by_mistake() -> None:
    project = write_statement(sign_command([SIGNERS[0]], MESH, Command(b"i" * 16, CreateProject("shop"), expect=7)))
    with pytest.raises(UsageError, match="about something else"):
        read_statement(project, MESH)
    scoped = Command(b"i" * 16, SetAdmins(KEYS[:3], 1), project="shop", environment="prod", expect=7)
    with pytest.raises(UsageError, match="about something else"):
        read_statement(write_statement(sign_command([SIGNERS[0]], MESH, scoped)), MESH)
    for bad in ("", "fhs1.", "fhs1.!!!", "fht1.abc", statement()[:-9], "fhs1." + "a" * 20_000):
        with pytest.raises(UsageError):
            read_statement(bad, MESH)


# --- endings ----------------------------------------------------------------------------------------------------------


NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000


def principal(*ends_ms: int, kind: str = "person") -> Principal:
    views = [RightsView(("deployer",), ("view",), ("*",), ("*",), number, ("ab",)) for number in ends_ms]
    first = views[0] if views else RightsView((), (), (), (), 0, ())
    return Principal(
        "ab" * 32, "ann", kind, first.roles, first.verbs, first.projects, first.environments, first.expires_ms, (),
        first.grants, "", (), tuple(views[1:]),
    )  # fmt: skip


def said(one: Principal, wall_ms: int) -> str:
    return ending_of(one, wall_ms).words(wall_ms)


def test_a_grant_that_ends_within_30_days_is_told_of_and_one_that_does_not_is_not() -> None:
    assert said(principal(NOW_MS + 31 * DAY_MS), NOW_MS) == ""
    assert said(principal(NOW_MS + 30 * DAY_MS + 1), NOW_MS) == ""
    assert said(principal(NOW_MS + 30 * DAY_MS), NOW_MS).endswith("an admin: freehold key renew")
    assert "ends in" in said(principal(NOW_MS + DAY_MS), NOW_MS)
    assert "has ended" in said(principal(NOW_MS), NOW_MS)
    assert said(principal(), NOW_MS) == ""


def test_of_several_grants_the_last_end_counts() -> None:
    assert said(principal(NOW_MS + DAY_MS, NOW_MS + 90 * DAY_MS), NOW_MS) == ""
    assert said(principal(NOW_MS + 90 * DAY_MS, NOW_MS + DAY_MS), NOW_MS) == ""


def test_an_agents_key_is_made_anew() -> None:
    assert said(principal(NOW_MS + DAY_MS, kind="agent"), NOW_MS).endswith("freehold token create NAME")


def test_a_node_is_asked_once_a_day_and_always_while_the_end_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    assert known("ab" * 32) is None
    far = ending_of(principal(NOW_MS + 90 * DAY_MS), NOW_MS)
    keep("ab" * 32, far)
    keep("cd" * 32, ending_of(principal(NOW_MS + DAY_MS), NOW_MS))
    assert known("ab" * 32) == far
    assert not far.is_old(NOW_MS + DAY_MS - 1)
    assert far.is_old(NOW_MS + DAY_MS)
    assert far.is_old(NOW_MS - 1), "the clock went back"
    near = known("cd" * 32)
    assert near is not None
    assert near.is_old(NOW_MS + 1), "it may have been renewed meanwhile"
    (tmp_path / "endings.json").write_text("{")
    assert known("ab" * 32) is None


def test_a_reminder_is_said_once_and_not_where_the_command_says_it() -> None:
    reminders()
    for text in ("one", "one", "", "two"):
        remind(text)
    told("two")
    assert reminders() == ["one"]
    assert reminders() == []


# --- renewal ----------------------------------------------------------------------------------------------------------


def renewed(lineage: tuple[bytes, ...], admin: Ed25519Signer) -> Grant:
    chosen_principal = replace(principal(NOW_MS), key=KEYS[3].hex(), lineage=tuple(digest.hex() for digest in lineage))
    signed = commands._again(
        admin,
        MESH,
        chosen_principal,
        chosen_principal.each[0],
        NOW_MS + DAY_MS,
        same_person=commands._is_same_person(chosen_principal, admin.public_key),
    )
    grant: Grant = decode(signed.payload, Grant)
    return grant


def test_a_renewal_makes_no_second_person_of_a_founder() -> None:
    admin, other = SIGNERS[0], SIGNERS[1]
    assert not renewed((), admin).same_person
    assert not renewed((KEYS[3],), admin).same_person, "a key stands behind itself"
    assert renewed((admin.public_key,), admin).same_person
    for lineage in ((admin.public_key,), (admin.public_key, other.public_key), (KEYS[2], KEYS[3])):
        with pytest.raises(UsageError, match="counts as one person"):
            renewed(lineage, other)


def test_a_renewal_that_is_repeated_renews_each_right_once_and_twice_is_once() -> None:
    holder = principal(NOW_MS)
    first = holder.each[0]
    for days in (1, 2, 3):  # what a renewal gave lies beside what it renewed: neither is renewed for the other
        until_ms = first.expires_ms + days * 10 * DAY_MS
        (held,) = commands._to_renew(holder, until_ms)
        assert held.expires_ms == max(rights.expires_ms for rights in holder.each)
        renewed = replace(first, expires_ms=until_ms)
        holder = replace(holder, beside=(*holder.beside, renewed))
        assert commands._to_renew(holder, until_ms + DAY_MS // 2) == []
    other = replace(first, projects=("another",))
    assert commands._to_renew(replace(holder, beside=(*holder.beside, other)), holder.each[-1].expires_ms) == [other]


async def test_an_answer_about_another_key_is_refused() -> None:
    asked: list[str] = []

    class Client:
        async def read(self, _kind: type[Principal], path: str) -> Principal:
            asked.append(path)
            return replace(principal(NOW_MS), key=KEYS[3].hex())

    client: Any = Client()
    assert (await principal_of(client, KEYS[3])).key == KEYS[3].hex()
    with pytest.raises(CommandError, match="answered about another one"):
        await principal_of(client, KEYS[2])
    assert asked == [f"/v1/principals/{key.hex()}" for key in KEYS[3:1:-1]]


def test_a_runner_keeps_nothing_of_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.setenv("FREEHOLD_TOKEN", "fhk1.anything")
    keep("aa" * 32, GrantEnd("ci", "agent", 1, 1))
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("FREEHOLD_TOKEN")
    keep("aa" * 32, GrantEnd("ci", "agent", 1, 1))
    assert known("aa" * 32) is not None
