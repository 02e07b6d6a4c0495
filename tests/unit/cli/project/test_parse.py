"""freehold.toml: what is read from a good file, and what is said about a bad one."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.change.proposal import demands_of
from cli.project.locate import locate
from cli.project.parse import FILE_MAX_BYTES, PROBLEMS_MAX, ProjectFileError, parse
from protocols.changes.change import Release
from protocols.changes.demands import Demands, EvidenceDemand

GOOD = """\
[project]
name = "guestbook"
owners = ["web-team"]

[app.web]
language = "wsgi"
source = "web"
routes = ["guestbook.example.com", "/guestbook"]
timeout = "10s"
memory_max = "64MiB"
config = { GREETING = "hello", TONE = "warm" }

[app.cleanup]
language = "python"
source = "jobs"
schedule = "*/5 * * * *"

[[test.smoke]]
app = "web"
contains = "hello"

[rollout]
stages = ["1", { nodes = "50%", pause = "approve", min_healthy_time = "30s" }, "100%"]
analysis = { max_error_rate = "0.5%" }

[env.production]
app.web.config = { GREETING = "good day" }
app.web.routes = ["guestbook.example.com"]
rollout.analysis.max_latency_p99 = "500ms"
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ProjectFileError) as caught:
        parse(text)
    return str(caught.value).splitlines()


def test_durations_sizes_and_shares_become_integers_of_one_unit() -> None:
    project = parse(GOOD)
    web = project.base.apps["web"]
    assert (web.timeout_ms, web.memory_max_bytes) == (10_000, 64 * 1024 * 1024)
    assert project.base.rollout.analysis.max_error_rate_ppm == 5_000
    assert [(stage.nodes, stage.pause) for stage in project.base.rollout.stages] == [
        ("1", 0),
        ("50%", "approve"),
        ("100%", 0),
    ]
    assert project.base.rollout.stages[1].min_healthy_time_ms == 30_000


def test_an_overlay_merges_tables_and_replaces_lists() -> None:
    production = parse(GOOD).settings("production")
    assert production.apps["web"].config == {"GREETING": "good day", "TONE": "warm"}
    assert production.apps["web"].routes == ("guestbook.example.com",)
    assert production.rollout.analysis.max_error_rate_ppm == 5_000
    assert production.rollout.analysis.max_latency_p99_ms == 500
    assert parse(GOOD).settings("staging") == parse(GOOD).base


POLICY = """
[policy]
approvals = 2
approver_roles = ["admin"]
evidence = ["smoke:24h:node", "build:30m"]

[env.staging]
policy.approvals = 0
"""


def test_a_project_tightens_policy_everywhere_or_in_one_environment() -> None:
    project = parse(GOOD + POLICY)
    smoke, build = EvidenceDemand("smoke", 86_400_000, by_node=True), EvidenceDemand("build", 1_800_000)
    assert project.base.demands == Demands(2, ("admin",), (smoke, build))
    assert project.settings("production").demands == project.base.demands
    relaxed = Demands(0, ("admin",), (smoke, build))
    assert project.settings("staging").demands == relaxed
    assert demands_of(project) == (("*", project.base.demands), ("staging", relaxed))
    assert demands_of(parse(GOOD)) == ()
    release = Release("guestbook", (), b"", "", b"", demands_of(project))
    assert [release.demands_for(name).approvals for name in ("production", "elsewhere", "staging")] == [2, 2, 0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"smoke:24h:node"', '"smoke:24h:nodes"', "34:13: policy.evidence[0] 'smoke:24h:nodes' does not fit (allowed"),
        ('"smoke:24h:node"', '"test:24h"', "34:13: policy.evidence[0] asks for what nothing here can show: there is no"),
        ("approvals = 2", "approvals = 9", "32:1: policy.approvals 9 is out of range"),
        ('["admin"]', '["viewer"]', "33:19: policy.approver_roles[0] 'viewer' is not one of them"),
        ("policy.approvals = 0", "policy.aproval = 0", "37:1: env.staging.policy.aproval is not a key here"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_meant_is_named(old: str, new: str, said: str) -> None:
    text = GOOD + POLICY
    assert old in text
    texts = problems(text.replace(old, new, 1))
    assert any(line.startswith("freehold.toml:" + said) for line in texts), texts


def test_entries_default_by_language() -> None:
    apps = parse(GOOD).base.apps
    assert (apps["web"].entry, apps["cleanup"].entry) == ("app:app", "app")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('owners = ["web-team"]', 'owner = ["x"]', "3:1: project.owner is not a key here; did you mean 'owners'?"),
        ('"wsgi"', '"wsgy"', "6:1: app.web.language 'wsgy' is not one of them; did you mean 'wsgi'?"),
        ('timeout = "10s"', 'timeout = "10"', "9:1: app.web.timeout '10' is not a duration; it needs a unit"),
        ('timeout = "10s"', "timeout = 10", "9:1: app.web.timeout is a number, not a string"),
        ('timeout = "10s"', 'timeout = "9h"', "9:1: app.web.timeout '9h' is out of range"),
        ('"64MiB"', '"64MB"', "10:1: app.web.memory_max '64MB' is not a size; write '64MiB'"),
        ('GREETING = "hello"', "GREETING = 5", "11:12: app.web.config.GREETING is a number, not a string"),
        ('"/guestbook"]', '"/guest book"]', "8:36: app.web.routes[1] '/guest book' does not fit"),
        ('"/guestbook"]', '"/.freehold/x"]', "8:36: app.web.routes[1] is reserved"),
        ('"/guestbook"]', '"/.well-known/acme-challenge"]', "8:36: app.web.routes[1] is reserved"),
        ('"/guestbook"]', '"a.example/.well-known/pki-validation/x"]', "8:36: app.web.routes[1] is reserved"),
        ('"*/5 * * * *"', '"*/5 * * * 8"', "16:1: app.cleanup.schedule has the weekday '8'"),
        ('source = "jobs"', 'source = "../jobs"', "15:1: app.cleanup.source '../jobs' does not fit"),
        ('source = "jobs"\n', "", "13:2: app.cleanup.source is missing"),
        ('app = "web"', 'app = "wep"', "19:1: test.smoke[0].app names an app that does not exist (allowed"),
        ('"0.5%"', '"101%"', "24:14: rollout.analysis.max_error_rate '101%' is more than 100%"),
        ('"100%"]', '"60%"]', "23:80: rollout.stages[2] is the last stage but not all nodes"),
        ('app.web.routes = ["gu', 'app.wep.routes = ["gu', "28:1: env.production.app.wep names an app"),
        ("app.web.config = {", "app.web.source = {", "27:1: env.production.app.web.source is not a key here"),
        ('name = "guestbook"', 'name = "Guest"', "2:1: project.name 'Guest' does not fit"),
        ('name = "guestbook"', "name = 2026-11-23", "2:1: project.name is a date or time, not a string"),
    ],
)  # fmt: skip
def test_every_message_names_line_column_key_and_what_is_allowed(old: str, new: str, said: str) -> None:
    assert old in GOOD
    texts = problems(GOOD.replace(old, new, 1))
    assert any(line.startswith("freehold.toml:" + said) for line in texts), texts


def test_several_problems_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace('"wsgi"', '"perl"').replace('"64MiB"', '"much"').replace('"jobs"', "7")
    assert [line.split(":")[1] for line in problems(text)] == ["6", "10", "15"]


def test_a_problem_of_an_app_is_not_repeated_for_each_environment() -> None:
    assert len(problems(GOOD.replace('"*/5 * * * *"', '"*/5 * * * 8"'))) == 1


def test_reports_are_bounded() -> None:
    text = GOOD + "\n".join(f"unknown{number} = 1" for number in range(50))
    assert len(problems(text)) == PROBLEMS_MAX + 1
    assert problems(text)[-1] == "... and 30 more"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[project\n", "freehold.toml:1:9: is not TOML: "),
        ('[project]\nname = "a', "is not TOML: "),
        ("[project]\nname = 'a'\nname = 'b'\n", "freehold.toml:3:"),
        ("a = [" + "[" * 900, "freehold.toml:1"),
        (("a = [" + "\n[" * 20_000), "is nested too deeply"),
        ("x" * (FILE_MAX_BYTES + 1), "is larger than 64 KiB"),
        ("." * 2000, "this line has 2000 characters; the limit is 1000"),
        ("a = " + "9" * 900 + "\n", "is not a key here"),
        ("", "project is missing"),
    ],
)
def test_text_that_is_no_project_at_all_is_refused_in_one_sentence(text: str, said: str) -> None:
    assert any(said in line for line in problems(text))


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [path, *(pair for key, item in value.items() for pair in paths(item, (*path, key)))]
    if isinstance(value, list):
        return [path, *(pair for index, item in enumerate(value) for pair in paths(item, (*path, index)))]
    return [path]


TOML_PIECES = st.sampled_from(
    [
        "[a]\n", "[a.b]\n", "[[l]]\n", "[[l.m]]\n", "[l.n]\n", "x = 1\n", "y.z = 'q'\n", '"k e y" = """a\n"" b"""\n',
        '"\\u0041\\"" = 1\n', "'lit' = '''\n'''\n", "arr = [1, [2, 3], {p = 1, q.r = [4]},\n # c\n 5,]\n", "# note\n",
        "s = \"a\\\\\" # \"\n", "d = 1979-05-27T07:32:00Z\n", "\n", "  t = { } \n", "e = []\r\n", 'f = """x\\""""\n',
    ]
)  # fmt: skip


@given(st.lists(TOML_PIECES, max_size=12).map("".join))
@settings(max_examples=400)
def test_every_path_the_parser_yields_has_a_place_that_names_it(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    places = locate(text)
    lines = text.replace("\r\n", "\n").split("\n")
    for path in paths(document):
        place = places[path]
        assert lines[place.line - 1][place.column - 1 :].strip() or path == ()


FUZZ_PIECES = st.one_of(st.text(max_size=20), st.sampled_from(GOOD.splitlines(keepends=True)), TOML_PIECES)


@given(st.lists(FUZZ_PIECES, max_size=40).map("".join))
@settings(max_examples=400)
def test_any_text_is_a_project_or_a_bounded_refusal(text: str) -> None:
    try:
        parse(text)
    except ProjectFileError as error:
        assert 1 <= len(error.problems) <= PROBLEMS_MAX  # noqa: PT017 - any other exception fails the test
        assert all(problem.line >= 1 and len(problem.sentence()) < 2_000 for problem in error.problems)  # noqa: PT017


VALUES = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text(max_size=8), st.sampled_from(["1", "10s", "64MiB", "100%", "web"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=300)
def test_one_changed_value_never_escapes_as_an_exception(data: st.DataObject) -> None:
    document = tomllib.loads(GOOD)
    path = data.draw(st.sampled_from([path for path in paths(document) if path]))
    position: Any = document
    for step in path[:-1]:
        position = position[step]
    position[path[-1]] = data.draw(VALUES)
    try:
        parse(_toml(document))
    except ProjectFileError as error:
        assert error.problems  # noqa: PT017


def _toml(value: Any) -> str:
    """Write a document as inline TOML, one key a line."""

    def inline(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{_quoted(key)} = {inline(inner)}" for key, inner in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(inline, item)) + "]"
        return _quoted(item) if isinstance(item, str) else str(item).lower()

    return "".join(f"{_quoted(key)} = {inline(item)}\n" for key, item in value.items())


def _quoted(text: str) -> str:
    return (
        '"' + "".join(f"\\U{ord(char):08x}" if not char.isalnum() or ord(char) > 126 else char for char in text) + '"'
    )


def test_replicas_and_the_time_to_live_are_read_and_an_app_with_data_has_no_replicas() -> None:
    more = GOOD.replace("[rollout]\n", '[rollout]\nreplicas = 2\ncandidate_ttl = "1m"\n')
    rollout = parse(more).base.rollout
    assert (rollout.replicas, rollout.candidate_ttl_ms) == (2, 60_000)
    assert (parse(GOOD).base.rollout.replicas, parse(GOOD).base.rollout.candidate_ttl_ms) == (0, 1_800_000)
    said = problems(more.replace('timeout = "10s"', 'keyvalue = ["visits"]'))
    assert any("rollout.replicas cannot be more than 1: web keeps its data on one node" in text for text in said)


def test_private_networks_are_read_and_let_addresses_of_theirs_be_named_and_no_other() -> None:
    asking = 'timeout = "10s"\nallow_hosts = ["10.0.5.7:9000"]\nprivate_networks = ["10.0.5.0/24"]'
    app = parse(GOOD.replace('timeout = "10s"', asking)).base.apps["web"]
    assert (app.allow_hosts, app.private_networks) == (("10.0.5.7:9000",), ("10.0.5.0/24",))
    for old, new, said in (
        ("10.0.5.7:9000", "10.0.6.7:9000", "app.web.allow_hosts[0] is an address that no node connects to"),
        ("10.0.5.7:9000", "169.254.169.254:80", "app.web.allow_hosts[0] is an address that no node connects to"),
        ("10.0.5.0/24", "169.254.0.0/16", "169.254.0.0/16 is not private"),
        ("10.0.5.0/24", "8.8.8.0/24", "8.8.8.0/24 is not private"),
        ("10.0.5.0/24", "10.0.5.7/24", "'10.0.5.7/24' is no network in its shortest form"),
        ('allow_hosts = ["10.0.5.7:9000"]', "", "app.web.private_networks stands without allow_hosts"),
    ):
        texts = problems(GOOD.replace('timeout = "10s"', asking.replace(old, new)))
        assert any(said in line for line in texts), (said, texts)
