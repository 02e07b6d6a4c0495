"""The frame of the command line: JSON answers, exit codes, errors that say what to do next."""

from __future__ import annotations

import errno
import json
import re
import shlex
import signal
from pathlib import Path

import click
import pytest

from cli.access import contexts
from cli.errors import CommandError, ExitCode, UsageError
from cli.frame import command, in_context, run
from cli.main import COMMANDS, freehold
from cli.text.going_on import goes_on
from cli.text.output import Output, fold


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leaves(group: click.Group, path: str) -> list[tuple[str, click.Command]]:
    pairs: list[tuple[str, click.Command]] = []
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        pairs += (
            leaves(command, f"{path} {name}") if isinstance(command, click.Group) else [(f"{path} {name}", command)]
        )
    return pairs


def test_every_command_that_answers_takes_json_and_all_show_examples() -> None:
    for path, entry in leaves(freehold, "freehold"):
        # mcp speaks a protocol on standard output: it has no answer of its own.
        assert any(option.name == "as_json" for option in entry.params) == (path != "freehold mcp"), path
        assert f"  {path}" in (entry.epilog or ""), path
        assert entry.get_short_help_str(), path


def test_every_option_says_what_it_is_for_and_every_command_what_it_does() -> None:
    unsaid = []
    for path, entry in leaves(freehold, "freehold"):
        said = [(path, (entry.help or "").split("\n\n")[0])]
        said += [
            (f"{path} {parameter.opts[0]}", parameter.help or "")
            for parameter in entry.params
            if isinstance(parameter, click.Option) and not parameter.hidden
        ]
        unsaid += [
            (what, text) for what, text in said if not re.fullmatch(r"[A-Za-z'`].*[.)]", text.strip(), re.DOTALL)
        ]
    assert unsaid == []


def test_a_default_is_shown_without_brackets_of_its_own() -> None:
    for path, entry in leaves(freehold, "freehold"):
        shown = entry.get_help(click.Context(entry, info_name=path))
        assert "[default: (" not in shown, path
        assert ("[default: production]" in shown) == (path.split()[1:] in IN_PRODUCTION), path


IN_PRODUCTION = [
    path.split()
    for path in (
        "diff", "propose", "deploy", "promote", "pause", "resume", "abort", "rollback", "why", "secret set",
        "secret rm", "project place", "ci init", "data move", "data export", "data import",
        "data freeze", "data thaw", "data standby", "data promote",
    )
]  # fmt: skip
"""The commands that act in production unless they are told."""


@pytest.mark.parametrize(
    "group", ["context", "data", "env", "evidence", "mesh", "node", "policy", "project", "secret", "token", "key", "ci"]
)
def test_the_help_of_a_group_shows_each_of_its_commands_in_use(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(freehold, [group, "--help"]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "..." not in shown.partition("Commands:")[2]
    for path, _ in leaves(freehold, "freehold"):
        assert not path.startswith(f"freehold {group} ") or f"    {path}" in shown


def test_every_example_is_a_command_line_that_is_accepted(outside: Path) -> None:
    for folder in ("evidence-3f9a12", "freehold"):
        (outside / folder).mkdir()
    for name in ("node.tar.gz", "hello.tar"):
        (outside / name).touch()
    for path, entry in leaves(freehold, "freehold"):
        for line in (entry.epilog or "").splitlines():
            _, named, rest = line.strip().rpartition(f"{path} ")
            if named:
                arguments = [part.replace("~/guestbook", "freehold") for part in shlex.split(rest.partition(" > ")[0])]
                entry.make_context(path, arguments)  # raises UsageError if an argument is missing or wrong


def test_a_misspelt_command_is_answered_with_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, meant in (
        (["deplyo"], "freehold deploy"),
        (["mesh", "jion"], "freehold mesh join"),
        (["members"], "freehold mesh members"),
    ):
        assert run(freehold, [*wrong, "--json"]) == ExitCode.USAGE
        assert f"'{meant}'" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert run(freehold, ["version", "--json"]) == ExitCode.USAGE
    assert "Did you mean" not in json.loads(capsys.readouterr().out)["error"]["message"]  # not decisions


def test_a_next_step_stays_in_the_context_that_was_named() -> None:
    with click.Context(freehold, info_name="freehold"):
        assert in_context("freehold status", "dev") == "freehold status --context dev"
        assert in_context("freehold mesh members", "dev") == "freehold mesh members --context dev"
        assert in_context("freehold status", None) == "freehold status"
        for other in ("freehold node run", "freehold diff, then deploy again", "correct the app and save"):
            assert in_context(other, "dev") == other


def test_an_error_is_one_json_object_with_kind_message_and_next_step(
    outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(freehold, ["build", "--json"]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["kind"] == "no-project"
    assert error["next_step"].startswith("freehold new")
    assert "error: there is no freehold.toml" in err
    assert "\x1b[" not in err  # no terminal, no colour


def test_without_json_nothing_but_results_goes_to_standard_output(
    outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(freehold, ["build"]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("next: ")


def test_a_wrong_option_is_usage_and_names_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(freehold, ["build", "--bog", "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["next_step"] == "freehold build --help"


def test_a_node_that_would_label_itself_is_told_that_labels_come_with_the_invite(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        run(freehold, ["mesh", "join", "fh1.x", "--label", "zone=eu", "--label", "disk=a b", "--json"])
        == ExitCode.USAGE
    )
    error = json.loads(capsys.readouterr().out)["error"]
    assert "labels come with the invite" in error["message"]
    assert error["next_step"].endswith("freehold mesh invite --label zone=eu --label 'disk=a b'")
    assert run(freehold, ["mesh", "join", "--help"]) == ExitCode.DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "Its roles and labels come with the invite." in said
    assert "--label" not in said


def test_an_option_without_its_value_names_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(freehold, ["mesh", "voters", "--replace", "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["next_step"] == "freehold mesh voters --help"


def test_a_command_that_answers_line_by_line_fails_in_one_line(
    outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(freehold, ["dev", "--json"]) == ExitCode.USAGE
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["error"]["kind"] == "no-project"


def test_json_is_refused_where_it_would_mean_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(freehold, ["mcp", "--json"]) == ExitCode.USAGE
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["next_step"], "--json" in error["message"]) == ("usage", "freehold mcp --help", True)


def test_an_unknown_command_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(freehold, ["biuld"]) == ExitCode.USAGE
    assert "biuld" in capsys.readouterr().err


def test_no_arguments_and_help_show_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        assert run(freehold, arguments) == ExitCode.DONE
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in COMMANDS)
        assert "Start with:" in shown


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(freehold, ["--version"]) == ExitCode.DONE
    assert capsys.readouterr().out.startswith("freehold, version ")


def group_of(function: object) -> click.Group:
    group = click.Group("test")
    group.add_command(command("go", examples=("freehold go",))(function))  # type: ignore[arg-type]
    return group


def test_a_command_error_becomes_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    class RefusedError(CommandError):
        exit_code = ExitCode.REFUSED_BY_POLICY

    def go(output: Output) -> None:
        raise RefusedError("two approvals are missing", next_step="freehold approve CHANGE", kind="policy")

    assert run(group_of(go), ["go", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "error": {"kind": "policy", "message": "two approvals are missing", "next_step": "freehold approve CHANGE"},
    }


def test_a_result_is_json_or_text_never_both(capsys: pytest.CaptureFixture[str]) -> None:
    def go(output: Output) -> None:
        output.step("web", "building")
        output.result({"release": "abc"}, "release abc")

    assert run(group_of(go), ["go", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "release": "abc"}
    assert run(group_of(go), ["go"]) == 0
    assert capsys.readouterr().out == "release abc\n"


def test_long_lines_are_folded_between_words_under_their_second_column_and_words_stay_whole() -> None:
    line = "  policy      one other person must approve a change before it runs"
    assert (
        fold(line, 40)
        == "  policy      one other person must\n              approve a change before it\n              runs"
    )
    digest = "release " + "ab" * 32
    assert fold(f"short\n{digest}", 40) == f"short\nrelease\n  {'ab' * 32}"


def test_a_defect_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    def go(output: Output) -> None:
        raise ZeroDivisionError("oops")

    assert run(group_of(go), ["go", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["kind"] == "internal"
    assert "ZeroDivisionError" in err


def test_an_error_may_bring_an_answer_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    def go(output: Output) -> None:
        raise CommandError("1 of 2 failed", next_step="correct it", kind="failed", answer={"results": [1, 2]})

    assert run(group_of(go), ["go", "--json"]) == ExitCode.ERROR
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["error"]["kind"], told["results"]) == (False, "failed", [1, 2])


def test_a_copy_for_which_there_is_no_room_names_the_file_that_was_to_be_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def go(output: Output) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/x", None, "/project/x")

    assert run(group_of(go), ["go", "--json"]) == ExitCode.ERROR
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "/project/x: no space left on device"


def test_a_full_disk_is_no_defect(capsys: pytest.CaptureFixture[str]) -> None:
    def go(output: Output) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x")

    assert run(group_of(go), ["go", "--json"]) == ExitCode.ERROR
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["message"] == "/data/x: no space left on device"
    assert "Traceback" not in err


@pytest.mark.parametrize(("damaged", "named"), [("contexts.json", "context"), ("keys/home-me.json", "key")])
def test_a_damaged_file_of_the_user_is_named_with_what_to_do(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damaged: str, named: str
) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(outside / "home"))
    contexts.write_context("home", contexts.Context("m" * 64, "/nowhere/api.sock", "home-me"))
    contexts.store_plain("home-me", bytes(32))
    (outside / "home" / damaged).write_text("{bad")
    assert run(freehold, ["token", "create", "bot", "--json"]) == ExitCode.ERROR
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], str(outside / "home" / damaged) in error["message"]) == ("damaged", True), named


@pytest.mark.parametrize(
    "line",
    [
        "env create staging", "env set staging --protected", "policy set --mode solo", "project create shop",
        "project place shop --data attic", "mesh remove attic", "mesh voters --replace attic oslo",
        "mesh reset oslo -m fire", "mesh invite", "node drain attic", "node undrain attic",
        "env freeze staging -m sale", "env unfreeze staging",
    ],
)  # fmt: skip
def test_who_has_no_admin_key_is_told_before_anything_is_looked_up_or_asked(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(outside / "home"))
    # No node answers there and nobody can say yes: a command that came to either would say that instead.
    for admin, kind, code in (("", "no-admin-key", ExitCode.REFUSED_BY_POLICY), ("lost", "no-key", ExitCode.USAGE)):
        contexts.write_context("home", contexts.Context("m" * 64, "/nowhere/api.sock", "home-me", admin))
        assert run(freehold, [*line.split(), "--json"]) == code
        assert json.loads(capsys.readouterr().out)["error"]["kind"] == kind


def test_a_broken_project_file_is_usage_with_every_problem(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (outside / "freehold.toml").write_text('[project]\nname = "A"\n[app.web]\nlanguage = "wsgy"\nsource = "web"\n')
    assert run(freehold, ["build", "--json"]) == ExitCode.USAGE
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "freehold.toml:2:1: project.name" in message
    assert "freehold.toml:4:1: app.web.language" in message


def test_a_node_that_is_not_where_it_is_by_default_is_named_and_never_guessed(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(outside / "home"))
    monkeypatch.setattr("cli.access.client.default_data_folder", lambda: outside / "default")
    elsewhere = outside / "my node"
    start = f"freehold node run --data {shlex.quote(str(elsewhere))}"
    contexts.write_context("home", contexts.Context("m" * 64, "/nowhere/api.sock", "", start=start))
    commands = (["node", "run"], ["node", "status"], ["mesh", "backup", "new.tar.gz"], ["mesh", "leave", "-y"])
    for words in commands:
        assert run(freehold, [*words, "--json"]) != ExitCode.DONE
        assert "--data DIRECTORY" in json.loads(capsys.readouterr().out)["error"]["next_step"] or words[1] == "backup"
    elsewhere.mkdir()
    (elsewhere / "genesis").touch()
    for words in commands:
        assert run(freehold, [*words, "--json"]) == ExitCode.USAGE
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["next_step"] == f"add --data {shlex.quote(str(elsewhere))}, the node of home"


@pytest.mark.parametrize("context", [None, contexts.Context("m" * 64, "/nowhere/api.sock", "home-me")])
def test_where_no_mesh_answers_tests_run_for_the_environments_of_the_project_file(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], context: contexts.Context | None
) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(outside / "home"))
    if context is not None:
        contexts.write_context("home", context)
    text = '[project]\nname = "a"\n[app.web]\nlanguage = "component"\nsource = "web.wasm"\nroutes = ["/"]\n'
    (outside / "freehold.toml").write_text(f'{text}[env.staging.app.web]\nconfig = {{ A = "b" }}\n')
    assert run(freehold, ["test", "--env", "stagin", "--json"]) == ExitCode.USAGE
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "no-environment"
    assert "(it names: production, staging)" in error["message"]
    for known in ("staging", "production"):
        run(freehold, ["test", "--env", known, "--json"])
        assert "the project has no tests" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_usage_errors_have_the_usage_code() -> None:
    assert UsageError("x", next_step="y").exit_code == 2


_JSON = click.Option(["--json", "as_json"], is_flag=True)


def _stop_now(as_json: bool) -> None:
    """What stops outside a command's own frame: while its module is imported, or its arguments are read."""
    raise KeyboardInterrupt


@command("going", examples=("freehold going",))
@click.option("--far", is_flag=True)
def _going(output: Output, far: bool) -> None:
    if far:
        goes_on("the start is handed over", "freehold abort", {"change": "ab"})
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "code", "message", "step", "change"),
    [
        (["waiting", "--json"], 130, "stopped; nothing was set going", "run it again when ready", None),
        (["going", "--json"], 143, "stopped; nothing was set going", "run it again when ready", None),
        (["going", "--far", "--json"], 143, "stopped; the start is handed over", "freehold abort", "ab"),
    ],
)
def test_an_interrupted_command_says_what_goes_on_in_json_too(
    arguments: list[str], code: int, message: str, step: str, change: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    group = click.Group("freehold", commands=[_going, click.Command("waiting", callback=_stop_now, params=[_JSON])])
    assert run(group, arguments) == code
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["error"]["kind"], told.get("change")) == (False, "interrupted", change)
    assert (told["error"]["message"], told["error"]["next_step"]) == (message, step)
