"""The story of `make demo`: a change that goes from a request to production and back, in eight steps, and a look at it.

Everything is done with the commands that a developer, an approver and an agent would use, on three machines. Not here: the
machines (scene.py), the agent's calls (agent.py), the local environment (laptop.py).
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import hmac
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from examples import agent, laptop
from examples.agent import Agent, AgentRefused
from examples.checks import Teller, Visitors, address_of, answers, call
from examples.scene import BOT, EXAMPLES, Scene, copy, first_releases, found
from tests.support.mesh.nodes import Fleet, Machine, free_port, until

REQUEST = "Sign each greeting, so that visitors can tell that it is ours."
SIGNING_KEY = "a key that stands in no file of the project"


def tell(teller: Teller, folder: Path, compiled: Path) -> None:
    """Tell the story; every claim goes through `teller.check`."""
    fleet = Fleet(folder / "mesh", compiled=compiled)
    projects = {name: copy(name, folder) for name in ("greeter", "guestbook", "hono", "faults")}
    try:
        with teller.chapter("Before the story: three machines, one mesh"):
            scene = found(teller, fleet, folder, projects)
        with teller.chapter("Before the story: what runs already"):
            first_releases(scene)
        with teller.chapter("1. A change request"):
            teller.say(f'"{REQUEST}"')
            teller.say("It is kept with the change, signed; `why` shows it ever after.")
        with teller.chapter("2. An edit"):
            _edit(scene)
        with teller.chapter("3. Where configuration changes live"):
            _configure(scene)
        with teller.chapter("4. The local environment: a mesh of one, in the sandbox"):
            laptop.tell(teller, scene.first, projects["greeter"], projects["hono"], projects["faults"])
        with Agent(scene.first, BOT, projects["greeter"]) as bot:
            with teller.chapter("5. Tests and smoke checks, with signed evidence (the agent, through MCP)"):
                _test(scene, bot)
            with teller.chapter("6. The diff"):
                _diff(scene, bot)
            with teller.chapter("7. Deploy: approval, stages, and a power cut"):
                _deploy(scene, bot)
        with teller.chapter("8. Logs, a release that fails, rollback, ownership"):
            _fail(scene)
            _roll_back(scene)
            _explain(scene)
        with teller.chapter("9. The mesh in a browser"):
            _look(scene, keep=bool(os.environ.get("KEEP")))
    finally:
        fleet.close()


def _edit(scene: Scene) -> None:
    file = scene.projects["greeter"] / "web" / "app.py"
    before, after = file.read_text(), (EXAMPLES / "signed" / "app.py").read_text()
    file.write_text(after)
    found = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "web/app.py", "web/app.py", lineterm="", n=0))
    scene.teller.quote("\n".join(line for line in found if line[:2] not in {"@@", "--", "++"}))


def _configure(scene: Scene) -> None:
    teller, project = scene.teller, scene.projects["greeter"]
    set_greeting(project, "good day", 'secrets = ["SIGNING_KEY"]\n')
    teller.say("One file, freehold.toml, says what the app may do and how it goes out:")
    teller.quote(project.joinpath("freehold.toml").read_text(), lines_max=16)
    answer = scene.first.run("secret", "set", "SIGNING_KEY", "--project", "greeter", "--json", stdin=SIGNING_KEY)
    teller.say("$ freehold secret set SIGNING_KEY       (the value comes from stdin)")
    sealed = len(answer.json["sealed_to"]) if answer.code == 0 else 0
    teller.check(f"version 1 is sealed to the {sealed} nodes that may run it", sealed == 3, answer)
    local = project / ".freehold" / "secrets"
    local.parent.mkdir(exist_ok=True)
    local.write_text("SIGNING_KEY=another one, for this laptop\n")


def set_greeting(project: Path, greeting: str, more: str = "") -> None:
    """Edit the configuration of an app, where it lives."""
    file = project / "freehold.toml"
    lines = file.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if line.startswith("config = "))
    lines[number] = f'config = {{ GREETING = "{greeting}" }}\n{more}'
    file.write_text("".join(lines))


def _test(scene: Scene, bot: Agent) -> None:
    teller = scene.teller
    teller.say(f"freehold mcp offers it {len(bot.tools)} tools: {', '.join(bot.tools[:6])},")
    teller.say(f"{', '.join(bot.tools[6:])}")
    status, config = bot.call("status"), bot.call("get_config")
    held = status["me"] == "bot" and config["apps"][0]["config"] == {"GREETING": "hello"}
    teller.check("status and get_config: it is bot, and what runs says hello", held, (status, config))
    built = bot.call("build")
    web = built["apps"]["web"]
    teller.say(f"build: release {built['release'][:12]}, component {web['component'][:12]}, {web['size_bytes'] >> 20} MiB")
    reaches = [name for name in web["capabilities"] if "keyvalue" in name or "outgoing" in name]
    teller.check("what it was not granted, its component does not even import", reaches == [], reaches)
    tested = bot.call("test")
    folder = scene.projects["greeter"] / ".freehold" / "builds" / tested["build"] / "artifacts"
    held = tested["release"] == built["release"] and [one.name for one in folder.iterdir()] == [web["component"]]
    teller.check("built again, it is the same release, and holds exactly that component", held, (built, tested))
    teller.check(f"test: {len(tested['runs'])} runs passed on these digests, signed, self-attested",
                 tested["passed"] and tested["self_attested"] and len(tested["runs"]) == 2, tested)  # fmt: skip
    papers = sorted((scene.projects["greeter"] / ".freehold" / "evidence" / tested["build"]).rglob("*.json"))
    teller.check(f"the evidence is {len(papers)} DSSE envelopes in .freehold/evidence", len(papers) == 3, papers)


def _diff(scene: Scene, bot: Agent) -> None:
    teller = scene.teller
    review = bot.call("diff")["review"]
    rows = {(one["section"], one["name"]): (one["before"], one["after"]) for one in review["differences"]}
    answer = scene.first.run("diff", "--folder", str(scene.projects["greeter"]))
    teller.say("$ freehold diff")
    teller.quote(answer.stdout, lines_max=45)
    teller.check("it names the greeting, before and after", rows.get(("configuration", "GREETING")) == ("hello", "good day"), rows)
    teller.check("and the secret by name and version", rows.get(("secrets", "SIGNING_KEY")) == (None, "version 1"), rows)
    held = answer.code == 0 and SIGNING_KEY not in answer.stdout + answer.stderr + str(review)
    teller.check("and never its value", held, answer)
    back = review["rollback"]
    held = back is not None and back["release"] == scene.first_release and len(back["nodes"]) == 3
    teller.check("the way back: the release that runs, held by all three nodes", held, back)


def _deploy(scene: Scene, bot: Agent) -> None:
    teller = scene.teller
    proposed = bot.call("propose", request=REQUEST)
    change = proposed["change"]
    missing = [one["rule"] for one in proposed["missing"]]
    teller.check(f"propose: change {change[:12]} with {proposed['evidence']} pieces of evidence; nothing runs yet",
                 proposed["evidence"] == 3 and missing == ["approval.missing"], proposed)  # fmt: skip
    asked = bot.call("request_approval", change=change)
    teller.say(f"request_approval: {asked['start']}; a person runs:")
    teller.quote(asked["for_a_person"])
    _try_to_approve(scene, bot, change)
    scene.approve(change)
    third = scene.machines[2]
    others = [(address_of(machine), "/greeter") for machine in scene.machines[:2]]
    with Visitors(*others) as visitors, ThreadPoolExecutor() as pool:
        cut = pool.submit(_cut_the_power, scene, third, change)
        seen = bot.watch(change)
        away_s = cut.result()
    teller.check(f"the agent watched it to the end: {', '.join(seen[-4:])}", seen[-1] == "base", seen)
    teller.say(f"machine three lost its power (kill -9) in the middle, for {away_s:.1f} s")
    teller.check(f"{visitors.count} visitors of the others were all answered", visitors.statuses == {200}, visitors.seen)
    newest = scene.first.ok("rollouts", "--project", "greeter", "--limit", "4")["rollouts"]
    promoted = [one for one in newest if one["action"] == "promote"]
    numbers = [sum(node["requests"] for node in one["numbers"]) for one in reversed(promoted)]
    teller.check(f"each promotion kept its numbers: {', '.join(f'{one} requests' for one in numbers)}, no error",
                 len(promoted) == 3 and not any(node["errors"] for one in promoted for node in one["numbers"]), newest)  # fmt: skip
    until(lambda: answers([third], "/greeter") == [(200, "good day\n")], 60, "machine three to serve the new release")
    teller.check("machine three came back, to the release decided without it", third.process is not None)
    status, body, fields = call(address_of(third), "/greeter")
    wanted = hmac.new(SIGNING_KEY.encode(), body.encode(), hashlib.sha256).hexdigest()
    teller.check("its greeting is signed with the secret", fields.get("x-signature") == wanted, (status, body, fields))


def _try_to_approve(scene: Scene, bot: Agent, change: str) -> None:
    teller = scene.teller
    try:
        bot.call("approve", change=change)
        kind = ""
    except AgentRefused as error:
        kind = error.told["kind"]
    teller.check(f"the agent tries to approve: {kind}", kind == "no-such-tool", kind)
    answer = agent.approves_by_command(scene.first, BOT, change)
    teller.check("the command, passphrase piped in: refused, it needs a person", answer.code in {1, 3}, answer)
    problem = agent.approves_by_api(scene.first, BOT, change, "greeter")
    teller.check(f"the API, signed with its own key: {problem.partition(':')[0]}", problem.startswith("approval."), problem)
    rules = agent.widens_its_grant(scene.first, BOT)
    held = len(rules) == 2 and all(rule.startswith("grant.") for rule in rules)
    teller.check(f"it signs itself a wider grant: {', '.join(sorted({*rules}))}", held, rules)
    papers = scene.first.ok("evidence", "show", change)
    teller.check("the change still waits for a person", all(one["rule"].startswith("approval.") for one in papers["missing"]) and papers["missing"] != [], papers)


def _cut_the_power(scene: Scene, machine: Machine, change: str) -> float:
    """Kill a daemon while the change is the candidate; start it again once the others have gone on without it."""

    def under_way() -> bool:
        rollout = scene.lane("greeter")["rollout"]
        return rollout is not None and rollout["change"] == change

    until(under_way, 60, "the rollout to begin")
    machine.kill()
    began_s = time.monotonic()
    time.sleep(3)  # the story's time without power; nothing is waited for
    machine.start()
    return time.monotonic() - began_s


def _fail(scene: Scene) -> None:
    teller, project = scene.teller, scene.projects["greeter"]
    teller.say("A release whose configuration forgot the greeting. Its smoke check passes,")
    teller.say("Ann lets it through, and its visitors get errors.")
    set_greeting(project, "")
    file = project / "freehold.toml"  # numbers decide as soon as there are twenty requests, however long that takes
    file.write_text(file.read_text().replace('min_healthy_time = "2s"', 'min_healthy_time = "20s"'))
    done: list[tuple[int, float]] = []
    targets = [(address_of(machine), "/greeter") for machine in scene.machines]
    with Visitors(*targets, *targets):
        deploying = threading.Thread(
            target=lambda: done.append(scene.run("deploy", "-m", "greet nobody", "--wait", "2m"))
        )
        deploying.start()
        until(lambda: _waiting(scene) != "" or bool(done), 120, "the change to be proposed")
        scene.approve(_waiting(scene))
        deploying.join()
    code, seconds = done[0]
    teller.check(f"exit code 4, rolled back, after {seconds:.0f} s", code == 4, code)
    until(lambda: answers(scene.machines, "/greeter") == [(200, "good day\n")] * 3, 20, "the release before")
    teller.check("every machine serves the release before, by itself", True)
    newest = scene.first.ok("rollouts", "--project", "greeter")["rollouts"][0]
    failed = [one for one in newest["numbers"] if one["errors"]]
    held = newest["action"] == "abort" and newest["signers"] == [] and failed != []
    teller.check("the decision kept the numbers that made it:", held, newest)
    for one in failed:
        teller.say(f"     ..{one['node'][-6:]}: {one['errors']} errors in {one['requests']} requests, limit 1 %")


def _waiting(scene: Scene) -> str:
    """Return the id of the change that waits for Ann, if it was proposed."""
    found = json.loads(scene.first.get("/v1/changes?project=greeter&limit=1"))
    return str(found[0]["id"]) if found and found[0]["request"] == "greet nobody" else ""


def _roll_back(scene: Scene) -> None:
    teller, first = scene.teller, scene.first
    lines = first.run("logs", "--project", "greeter", "--contains", "no greeting", "--limit", "3", "--json").json["lines"]
    teller.say('$ freehold logs --project greeter --contains "no greeting"')
    teller.check("the logs of all nodes say why: ValueError: no greeting is configured", bool(lines), lines)
    began_s = time.monotonic()
    teller.say('$ freehold rollback --project greeter -m "unsigned was simpler"')
    answer = first.run("rollback", "--project", "greeter", "-m", "unsigned was simpler", "--json")
    until(lambda: answers(scene.machines, "/greeter") == [(200, "hello\n")] * 3, 30, "the first release")
    seconds = time.monotonic() - began_s
    fields = call(address_of(first), "/greeter")[2]
    held = answer.code == 0 and "x-signature" not in fields
    teller.check(f"code, configuration and secrets are back everywhere after {seconds:.1f} s", held, (answer, fields))


def _explain(scene: Scene) -> None:
    teller, third = scene.teller, scene.machines[2]
    teller.say("$ freehold why guestbook                 (asked on machine three)")
    answer = third.run("why", "guestbook")
    teller.quote(answer.stdout, lines_max=18)
    teller.check("eight answers, each with its signed sources", answer.code == 0 and "\n8. " in answer.stdout, answer)
    verified = third.ok("audit", "--verify")
    teller.check(f"{verified['entries']} audit entries of {len(verified['nodes'])} nodes, whole", verified["faults"] == [], verified)
    told = "".join(machine.log.read_text(errors="replace") for machine in scene.machines)
    teller.check("the secret's value is in no node's log", SIGNING_KEY not in told)


def _look(scene: Scene, *, keep: bool) -> None:
    """Open the console as Ann would; with `keep` it and the mesh stay until Ctrl-C."""
    teller, port = scene.teller, free_port()
    teller.say("$ freehold console                       (on Ann's laptop)")
    with scene.ann.follow("console", "--port", str(port), "--json") as said:
        until(lambda: '"url"' in said.read_text(), 30, "the console's link")
        link = next(json.loads(line)["url"] for line in said.read_text().splitlines() if '"url"' in line)
        status, page, _ = call(f"localhost:{port}", "/")
        teller.check("its page is served to this machine's browser, by her own installation", status == 200, (status, page[:200]))
        teller.say(link)
        if not keep:
            teller.say("It was there until now: `make demo KEEP=1` keeps the mesh and the console up, to look around.")
            return
        teller.say("The link lets one browser in, within a minute. Ctrl-C ends the console and the mesh.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
