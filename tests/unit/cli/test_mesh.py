"""What operators' commands work out before they ask anybody: durations, names, plans for voters, faults, the unit."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cli.access.members import Member, find_member
from cli.access.voters import VoterStore, replacing, without
from cli.change.proposal import visited_at
from cli.commands.history.decisions import _described as decision_lines
from cli.errors import CommandError, UsageError
from cli.host import systemd
from cli.project.find import project_here
from cli.project.scaffold import CHOICES, create
from cli.text.table import table
from cli.text.times import moment, time_of_day
from cli.text.units import checked_addresses, duration_ms, in_words, labels_of
from cli.views import checks, lane_status
from cli.views.lanes import choose_lane
from cli.views.watch import LAST_WORDS_MAX, RefusedStartError, judge_start, last_words
from protocols.api_models import NodeView, Numbers, StartView
from protocols.chain.decision import Voter
from protocols.changes.differences import written_ms
from protocols.machine import PeerId
from protocols.state.model import Lane
from protocols.trust.certificates import DAY_MS
from tests.support.protocols.answers import change_view, decision_view, node_view

NOW_MS = 1_700_000_000_000


def member(name: str, **fields: Any) -> Member:
    document = {
        "node": f"12D3KooW{name:>12}".replace(" ", "x"), "name": name, "version": "1", "standing": "member",
        "belief": "alive", "connected": True, "confirmed": True, "voter": True, "draining": False, "roles": (),
        "labels": {}, "addresses": (), "rtt_ms": 1.0, "expires_ms": NOW_MS + 90 * DAY_MS, "last_seq": 4,
        "last_serial": 1,
    }  # fmt: skip
    return Member(**{**document, **fields})


def store(name: str, *, votes: bool = True, ready: bool = True, number: int = 1) -> VoterStore:
    said = f"{name}-{number} is ready".encode() if ready else b""
    return VoterStore(Voter(PeerId(name), bytes([number]) * 16), votes, said)


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine nine hours ahead of UTC."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("tokyo")
def test_moments_are_utc_and_say_so_wherever_the_machine_stands() -> None:
    assert moment(NOW_MS) == "2023-11-14 22:13:20Z"
    assert time_of_day(NOW_MS) == time_of_day("2023-11-15T07:13:20.500+09:00") == "22:13:20Z"
    assert time_of_day("") == ""


# --- words on the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected_ms"), [("90s", 90_000), ("15m", 900_000), ("24h", 86_400_000), ("7d", 7 * DAY_MS)]
)
def test_durations_are_read_as_people_write_them(text: str, expected_ms: int) -> None:
    assert duration_ms(text) == expected_ms


@pytest.mark.parametrize("text", ["", "5", "0s", "1 h", "h", "-3m", "1.5h", "9999999s"])
def test_what_is_no_duration_is_a_usage_error_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        duration_ms(text)
    assert "24h" in caught.value.next_step


def test_a_span_is_told_in_its_two_largest_units() -> None:
    assert [in_words(ms) for ms in (0, 59_000, 3_660_000, 90_061_000)] == ["0s", "59s", "1h 1m", "1d 1h"]


def test_a_span_is_told_to_the_nearest_unit_unless_it_is_a_limit_to_stay_under() -> None:
    moment_ms = 40
    for text in ("60s", "24h", "7d", "1m", "1h"):
        whole = in_words(duration_ms(text))
        assert in_words(duration_ms(text) - moment_ms) == whole
        assert in_words(duration_ms(text) + moment_ms) == whole
    assert [in_words(7 * DAY_MS - ago_ms) for ago_ms in (1_740_000, 1_860_000)] == ["7d", "6d 23h"]
    assert in_words(7 * DAY_MS - moment_ms, at_least=True) == "6d 23h"
    assert in_words(3_600_000 - moment_ms, at_least=True) == "59m 59s"


def test_an_exact_span_is_written_in_the_largest_unit_that_divides_it() -> None:
    spans_ms = (0, 1, 1_500, 10_000, 90_000, 120_000, 7_200_000, 172_800_000)
    assert [written_ms(number) for number in spans_ms] == ["0s", "1ms", "1500ms", "10s", "90s", "2m", "2h", "2d"]


def test_labels_come_out_in_order_and_a_repeated_key_is_refused() -> None:
    assert labels_of(("zone=eu", "disk=ssd")) == (("disk", "ssd"), ("zone", "eu"))
    for wrong in (("zone",), ("=eu",), ("zone=",), ("zone=eu", "zone=us")):
        with pytest.raises(UsageError):
            labels_of(wrong)


@pytest.mark.parametrize("text", ["4100", ":4100", "host:", "host:http", "host:70000"])
def test_an_address_needs_a_host_and_a_port(text: str) -> None:
    with pytest.raises(UsageError):
        checked_addresses((text,))


def test_a_table_aligns_its_columns_and_leaves_no_trailing_space() -> None:
    assert table(("A", "LONG"), [("1", "x"), ("22", "")]) == "A   LONG\n1   x\n22"
    assert table(("A",), []) == ""


def test_a_node_is_found_by_name_id_or_the_end_of_its_id_and_never_guessed() -> None:
    oslo, rome = member("oslo"), member("rome")
    everyone = (oslo, rome)
    assert find_member(everyone, "oslo") is oslo
    assert find_member(everyone, rome.node) is rome
    assert find_member(everyone, rome.node[-6:]) is rome
    for wrong in ("me", "12D3KooW", "paris"):
        with pytest.raises(UsageError):
            find_member(everyone, wrong)
    with pytest.raises(UsageError, match="2 nodes"):
        find_member((oslo, replace(rome, name="oslo")), "oslo")


# --- the next voters --------------------------------------------------------------------------------------------------


def test_a_ready_node_takes_the_place_of_a_voter_that_goes() -> None:
    stores = (store("a"), store("b", ready=False), store("c", ready=False), store("d", votes=False))
    plan = without(stores, PeerId("b"))
    assert [voter.node for voter in plan.voters] == ["a", "c", "d"]
    assert (plan.added, plan.removed) == (("d",), ("b",))
    assert plan.statements == (b"a-1 is ready", b"d-1 is ready")


def test_without_a_spare_node_the_voters_shrink_to_an_odd_number() -> None:
    stores = (store("a"), store("b", ready=False), store("c", ready=False))
    assert [voter.node for voter in without(stores, PeerId("c")).voters] == ["a"]
    five = tuple(store(name) for name in "abcde")
    assert len(without(five, PeerId("e")).voters) == 3


def test_the_only_voter_cannot_go() -> None:
    with pytest.raises(CommandError) as caught:
        without((store("a"),), PeerId("a"))
    assert caught.value.kind == "last-voter"


def test_a_set_of_which_half_said_nothing_is_not_proposed() -> None:
    stores = (store("a", ready=False), store("b", ready=False), store("c"), store("d", votes=False))
    with pytest.raises(CommandError) as caught:
        without(stores, PeerId("c"))
    assert caught.value.kind == "not-ready"


def test_a_node_that_lost_its_disk_votes_again_with_its_new_store() -> None:
    stores = (store("a"), store("b", ready=False), store("c"), store("b", votes=False, number=2))
    plan = replacing(stores, PeerId("b"), PeerId("b"))
    assert Voter(PeerId("b"), b"\2" * 16) in plan.voters
    assert len(plan.voters) == 3


def test_only_a_voter_is_replaced_and_only_by_a_ready_node() -> None:
    stores = (store("a"), store("d", votes=False, ready=False))
    for old, new in (("x", "d"), ("a", "d")):
        with pytest.raises(CommandError):
            replacing(stores, PeerId(old), PeerId(new))


# --- faults -----------------------------------------------------------------------------------------------------------


def view(**fields: Any) -> NodeView:
    return node_view(**{"node": member("a").node, "expires_ms": NOW_MS + 90 * DAY_MS, **fields})


def test_a_healthy_node_has_no_finding() -> None:
    assert checks.node(view(), NOW_MS) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"standing": "revoked"}, "revoked"),
        ({"standing": "limited"}, "invite"),
        ({"quarantined": "behind its fence"}, "behind its fence"),
        ({"stalled": "rules 9"}, "rules 9"),
        ({"muted": "its disk is full"}, "does not vote: its disk is full"),
        ({"expires_ms": NOW_MS - 1}, "expired"),
        ({"disk_free_bytes": 100 << 20}, "100 MiB"),
        ({"wasmtime": "49.0.0"}, "older"),
        ({"refused_by": {"p": "hello.cloned: x"}}, "another machine"),
        ({"doubles": ["12D3KooWpeerpeer"]}, "peerpeer"),
        ({"refused_by": {"p": "hello.revoked: x"}}, "turn oslo away"),
    ],
)
def test_each_fault_of_a_node_is_named_with_advice(fields: dict[str, Any], words: str) -> None:
    findings = checks.node(view(**fields), NOW_MS)
    assert [(finding.fault, words in finding.what, bool(finding.advice)) for finding in findings] == [
        (True, True, True)
    ]


def test_a_certificate_that_runs_out_within_two_weeks_is_a_warning_and_a_fault_afterwards() -> None:
    soon = checks.members([member("oslo", expires_ms=NOW_MS + 3 * DAY_MS)], NOW_MS)
    assert [(finding.fault, "3d" in finding.what) for finding in soon] == [(False, True)]
    late = checks.members([member("oslo", expires_ms=NOW_MS - 1)], NOW_MS)
    assert [finding.fault for finding in late] == [True]
    assert checks.members([member("oslo", expires_ms=NOW_MS + 15 * DAY_MS)], NOW_MS) == []


def test_the_quorum_is_judged_by_the_voters_that_can_be_reached() -> None:
    up = [member("a", belief="self"), member("b"), member("c")]
    down = member("c", belief="down", connected=False)
    assert checks.quorum(up) == []
    one_left = checks.quorum([*up[:2], down])
    assert [(finding.fault, "one more" in finding.what) for finding in one_left] == [(True, True)]
    lost = checks.quorum([up[0], member("b", belief="down"), down])
    assert [(finding.fault, "nothing can be decided" in finding.what) for finding in lost] == [(True, True)]
    two_nodes = checks.quorum([up[0], member("b", voter=False)])
    assert [(node.fault, "add a third" in node.advice) for node in two_nodes] == [(False, True)]


def test_a_voter_that_rebooted_is_a_fault_when_too_few_others_can_answer_it() -> None:
    up, down = [member("a", belief="self"), member("b"), member("c")], member("c", belief="down", connected=False)
    assert checks.boot_read(view(), up) == []
    reading = checks.boot_read(view(boot_answers_needed=2), up)
    assert [(finding.fault, "a moment" in finding.advice) for finding in reading] == [(False, True)]
    stuck = checks.boot_read(view(boot_answers_needed=2), [*up[:2], down])
    assert [(finding.fault, "1 can be reached" in finding.what, "start" in finding.advice) for finding in stuck] == [
        (True, True, True)
    ]


def test_what_only_the_node_can_judge_is_passed_on_with_its_advice() -> None:
    findings = checks.node(view(concerns=["a.pem ends in 3 days; put its successor in its place"]), NOW_MS)
    assert [(finding.fault, finding.what, finding.advice) for finding in findings] == [
        (False, "oslo: a.pem ends in 3 days", "put its successor in its place")
    ]


def test_a_voter_with_another_store_than_the_one_that_votes_is_a_fault() -> None:
    assert checks.stores((store("a"), store("d", votes=False))) == []
    lost = checks.stores((store("a"), store("b", ready=False), store("b", votes=False, number=2)))
    assert [(finding.fault, "--replace b b" in finding.advice) for finding in lost] == [(True, True)]


def test_a_clock_is_a_warning_at_five_seconds_and_a_fault_at_sixty() -> None:
    assert checks.clock("oslo", 4_000) == []
    assert [finding.fault for finding in checks.clock("oslo", -10_000)] == [False]
    assert [finding.fault for finding in checks.clock("oslo", 61_000)] == [True]


def test_files_that_others_can_read_are_faults() -> None:
    assert checks.permissions(0o40700, {"node.key": 0o100600}) == []
    assert len(checks.permissions(0o40755, {"node.key": 0o100644})) == 2


# --- decisions and the service ----------------------------------------------------------------------------------------


def test_a_decision_is_told_with_its_voters_and_numbers() -> None:
    numbers = (Numbers("12D3KooWnodenode", "fail", 40, 9, 1500, 0, "error rate"),)
    said = {"voters": ("12D3KooWnodenode",), "reason": "too many errors", "numbers": numbers}
    lines = decision_lines(decision_view("abort", NOW_MS, "ab" * 32, **said))
    assert lines[0].startswith("    7  2023-11-14 22:13:20Z  abort ")
    assert "shop/eu" in lines[0]
    assert "by health; certified by nodenode" in lines[1]
    assert "40 requests, 9 errors" in lines[3]


def test_who_signed_a_decision_is_told_by_name_and_by_key_where_no_grant_names_it() -> None:
    lines = decision_lines(decision_view("start", NOW_MS, signers=("ab" * 32, "cd" * 32), names=("ann", "")))
    assert "by ann, cdcdcdcdcdcd; certified" in lines[1]


def test_the_unit_keeps_only_what_a_node_needs() -> None:
    unit = systemd.unit_text(systemd.DATA_FOLDER, [4100, 8080])
    assert "User=freehold" in unit
    assert "CapabilityBoundingSet=\n" in unit
    assert "PrivateUsers=yes" in unit
    assert "MemoryDenyWriteExecute=" not in unit
    low = systemd.unit_text(systemd.DATA_FOLDER, [80])
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in low
    assert "PrivateUsers" not in low


def test_a_data_folder_elsewhere_is_all_that_the_service_may_write_and_all_that_is_handed_over_or_deleted() -> None:
    elsewhere = Path("/srv/my apps/free%hold")
    unit = systemd.unit_text(elsewhere, [4100])
    assert 'ReadWritePaths="/srv/my apps/free%%hold"\n' in unit
    assert '--data "/srv/my apps/free%%hold"\n' in unit
    assert "StateDirectory=" not in unit
    assert "StateDirectory=freehold\n" in systemd.unit_text(systemd.DATA_FOLDER, [4100])
    install = systemd.install_steps("1.2", elsewhere, user_exists=True)
    assert [step.command[-1] for step in install if step.command[:1] == ("chown",)] == [str(elsewhere)]
    purge = systemd.uninstall_steps(elsewhere, purge=True, user_exists=False)
    assert any(f"delete {elsewhere}," in step.text for step in purge)


def test_only_what_an_installation_made_counts_as_a_version(tmp_path: Path) -> None:
    for name in ("0.1.0", "0.2.0", "somebody's"):
        (tmp_path / name / "bin").mkdir(parents=True)
    for name in ("0.1.0", "0.2.0"):
        (tmp_path / name / "bin" / "freehold").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "freehold").touch()
    (tmp_path / "current").symlink_to(tmp_path / "0.2.0")
    assert systemd.versions(tmp_path) == (tmp_path / "0.1.0", tmp_path / "0.2.0")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_rates_the_unit_well(tmp_path: Path) -> None:
    path = tmp_path / systemd.UNIT_NAME
    path.write_text(systemd.unit_text(systemd.DATA_FOLDER, [4100, 8080]))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Unknown" not in done.stderr
    assert "Failed to parse" not in done.stderr
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_a_python_in_somebodys_home_is_no_use_to_the_service() -> None:
    assert systemd.hidden_home("/root/.pyenv/versions/3.11.7") == "/root"
    assert systemd.hidden_home("/home/ada/python") == "/home"
    assert systemd.hidden_home("/usr") == ""
    assert systemd.hidden_home("/homes/python") == ""


def test_installing_and_removing_are_plans_before_they_are_deeds() -> None:
    install = systemd.install_steps("1.2", systemd.DATA_FOLDER, user_exists=False)
    assert [step.command[0] for step in install if step.command] == [
        "useradd",
        "chown",
        "systemctl",
        "systemctl",
        "systemctl",
    ]
    again = systemd.install_steps("1.2", systemd.DATA_FOLDER, user_exists=True)
    assert len(again) == len(install) - 1
    steps = systemd.uninstall_steps(systemd.DATA_FOLDER, purge=False, user_exists=True)
    purged = systemd.uninstall_steps(systemd.DATA_FOLDER, purge=True, user_exists=True)
    assert not any("delete" in step.text for step in steps)
    assert [step.command[0] for step in purged if step.command][-1] == "userdel"


def test_the_last_words_of_a_release_are_each_told_once_however_often_they_were_said() -> None:
    trace = ["Traceback:", "  in greet", "ValueError: none"]
    said = [
        {"time": f"{number:04}", "app": "web", "stream": "guest", "event": "guest", "message": trace[number % 3]}
        for number in range(30)
    ]
    assert [(entry["message"], times) for entry, times in last_words(reversed(said))] == [(text, 10) for text in trace]
    many = [{**said[0], "time": f"{number:04}", "message": str(number)} for number in range(40)]
    assert [entry["message"] for entry, _ in last_words(many)] == [str(number) for number in range(40)][
        -LAST_WORDS_MAX:
    ]


def test_visitors_are_told_addresses_they_can_open() -> None:
    assert visited_at(["127.0.0.1:8080"], ["/", "/shop"]) == ["http://127.0.0.1:8080/", "http://127.0.0.1:8080/shop"]
    assert visited_at(["0.0.0.0:80"], ["/"], "10.0.0.7") == ["http://10.0.0.7/"]
    assert visited_at(["0.0.0.0:8080"], ["shop.example", "shop.example/cart"]) == [
        "http://shop.example:8080", "http://shop.example:8080/cart",
    ]  # fmt: skip
    assert visited_at([], ["/"]) == []


# --- where a lane stands ----------------------------------------------------------------------------------------------


def test_where_a_lane_runs_names_the_nodes_that_are_down() -> None:
    names = {"a": "oslo", "b": "berlin", "c": "rome"}
    assert lane_status.where_words(("a", "b"), (), names, data=False) == "oslo, berlin"
    assert lane_status.where_words(("a", "b"), ("b",), names, data=False) == "oslo, berlin; berlin is down"
    assert lane_status.where_words(("b",), ("b",), names, data=True) == "data on berlin, which is down"
    many = tuple("abcdef")
    assert lane_status.where_words(many, ("a", "b"), names, data=False) == "6 nodes; oslo, berlin are down"


def test_a_lane_that_nobody_serves_says_so_and_one_that_somebody_serves_does_not() -> None:
    names = {"a": "oslo", "b": "berlin"}
    assert "its data is on berlin, which is down" in lane_status.unserved_words(("b",), ("b",), names, data=True)
    assert "oslo, berlin are down" in lane_status.unserved_words(("a", "b"), ("a", "b"), names, data=False)
    assert lane_status.unserved_words(("a", "b"), ("b",), names, data=False) == ""
    assert lane_status.unserved_words((), (), names, data=False) == ""


def test_what_runs_began_with_the_last_promotion_of_its_start_or_with_the_rollback_to_it() -> None:
    first = [
        decision_view("promote", 4),
        decision_view("promote", 3),
        decision_view("start", 2, "one"),
        decision_view("claim_routes", 1),
    ]
    assert lane_status.began_ms("one", first) == 4
    later = [decision_view("promote", 6), decision_view("start", 5, "two"), *first]
    assert lane_status.began_ms("two", later) == 6
    assert lane_status.began_ms("one", [decision_view("abort", 7), *later[1:]]) == 4
    assert lane_status.began_ms("one", [decision_view("rollback", 8, "one"), *later]) == 8
    assert lane_status.began_ms("one", []) == 0


def test_a_rollout_that_somebody_aborted_is_told_with_who_did_until_another_begins() -> None:
    by_hand = decision_view("abort", 9, names=("ann", ""), signers=("aa" * 32, "bb" * 32))
    assert lane_status.aborted([by_hand, decision_view("start", 8)]) == lane_status.Aborted(9, "ann, bbbbbbbbbbbb")
    alone = decision_view("abort", 9)
    assert lane_status.aborted([decision_view("claim_routes", 10), alone]) == lane_status.Aborted(9, "health")
    assert lane_status.aborted([decision_view("start", 10), by_hand]) is None
    assert lane_status.aborted([]) is None


def test_a_stage_says_of_which_of_its_nodes_it_knows_nothing() -> None:
    names = {"a": "oslo", "b": "berlin", "c": "rome"}
    said = lane_status.silent_words(("a", "b", "c"), ["a", "b"], ("b",), names)
    assert said == [
        "berlin is down: the stage waits for it",
        "rome has not reported yet: the stage waits for it",
    ]
    until = lane_status.silent_words(("b",), [], ("b",), names, " for 3 minutes more, then it goes back")
    assert until == ["berlin is down: the stage waits for it for 3 minutes more, then it goes back"]


def test_a_change_that_waits_is_told_with_what_it_waits_for_and_its_words_on_one_line() -> None:
    change = change_view(request="greet\n\x1b[2Jall " + "x" * 80)
    assert lane_status.waiting_words(change) == ""
    waits = StartView(change.id, "waiting", 0, "approval.missing", "0 of 1 approvals")
    said = lane_status.waiting_words(replace(change, start=waits))
    assert said.startswith('change abababababab "greet [2Jall xxx')
    assert said.endswith('…" waits: 0 of 1 approvals; freehold approve abababababab')
    assert "\x1b" not in said


def test_a_start_that_leaves_out_a_node_that_is_back_names_the_command_that_takes_it_in() -> None:
    start = StartView("ab" * 32, "waiting", 0, "fresh.nodes-missed", "the start leaves out 1 of 3 nodes that are up")
    view = change_view(start=start)
    step = "freehold deploy --change abababababab, which starts it on those nodes too"
    assert lane_status.waiting_words(view).endswith(f"waits: {start.detail}; {step}")
    assert lane_status.held_by(start) == start.rule
    with pytest.raises(RefusedStartError, match="leaves out") as caught:
        judge_start(view, 6.0, 0.0, 5.0)
    assert caught.value.next_step == step
    assert lane_status.held_by(replace(start, rule="rollout.not-prepared")) == ""


def test_a_warning_calls_nodes_by_their_names() -> None:
    chosen_member = member("oslo")
    assert (
        lane_status.with_names(f"voter {chosen_member.node} is down", [chosen_member])
        == f"voter {chosen_member.title} is down"
    )


def test_a_step_in_a_rollout_is_taken_in_the_project_that_was_named_or_in_the_only_one_and_none_is_guessed() -> None:
    lanes = [Lane("blog", "production"), Lane("shop", "production"), Lane("blog", "staging")]
    assert choose_lane(lanes, "shop", "production").project == "shop"
    assert choose_lane(lanes, None, "staging").project == "blog"
    with pytest.raises(UsageError) as several:
        choose_lane(lanes, None, "production")
    assert "--project blog" in several.value.next_step
    with pytest.raises(UsageError, match="there is no project shop"):
        choose_lane(lanes, "shop", "staging")


def test_the_project_of_a_folder_is_found_from_inside_it_and_a_broken_file_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = create("shop", CHOICES["python"], tmp_path)
    monkeypatch.chdir(root / "web")
    assert project_here() == "shop"
    (root / "freehold.toml").write_text("[[")
    assert project_here() == ""
    monkeypatch.chdir(tmp_path)
    assert project_here() == ""


@pytest.mark.parametrize(
    ("tries_again", "elapsed_s", "given_up"),
    [(False, 0.0, True), (True, 0.0, False), (True, 59.0, False), (True, 61.0, True)],
)
def test_a_deploy_waits_for_a_release_that_its_node_tries_again_to_prepare_and_not_for_a_broken_one(
    tries_again: bool, elapsed_s: float, given_up: bool
) -> None:
    start = StartView("c" * 64, "waiting", 0, "rollout.not-prepared", "one node has not")
    view = change_view(id="c" * 64, failure="no room", tries_again=tries_again, start=start)
    if given_up:
        with pytest.raises(RefusedStartError, match="no room"):
            judge_start(view, elapsed_s, elapsed_s, 5.0)
    else:
        judge_start(view, elapsed_s, elapsed_s, 5.0)
