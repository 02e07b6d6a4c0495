"""One node's part in an upgrade of the mesh's daemons, over `/freehold/upgrade/1`, and the part of the node that conducts it.

    asker    -> one block: Look, TakeUp or Hand
    answerer -> one block: UpgradeStanding

An admin's paper says what is to run; nobody is believed about it. The node that was asked conducts: it has one node after
the other take the paper up, itself last, while every other voter is reached and no rollout is under way, and goes on once
that node was healthy for the window. A node that takes it up fetches the wheels by their digests, prepares them, hands its
workers over and starts the new release on trial; a release that does not become healthy goes back by itself (launcher.py),
and the upgrade ends there. Not here: preparing a release (releases_here.py), and the API (node/api/upgrade.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from node.keys import write_private
from node.serving.workloads import Workloads
from node.store.artifacts import ArtifactError, ArtifactStore
from node.store.schema_copy import copy_folder, forget_copies
from node.transport import Stream, StreamError, Transport
from node.upgrade.releases_here import Failed, ReleaseError, ReleasesHere, Trial
from protocols.core import NodeCore
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.machine import Now, PeerId
from protocols.trust.cosigning import Cosigned
from protocols.trust.store import Standing
from protocols.trust.upgrades import UpgradePaper, following_problem, open_upgrade

PROTOCOL = "/freehold/upgrade/1"
ASK_MAX_BYTES = 32 * 1024
ANSWER_MAX_BYTES = 64 * 1024
ASK_TIMEOUT_S = 10.0
PREPARE_TIMEOUT_S = 600.0
"""How long a node may take to fetch the wheels from a peer and to unpack them."""

BACK_WITHIN_S = 300.0
"""Beyond the window: how long a node that took the paper up may be away before the upgrade is called failed."""

LOOK_EVERY_S = 1.0
FILE = "upgrade"

GATE = "upgrade.wait"
"""The rule of a node that must not stop now; a moment later it may."""

REFUSED = "upgrade.refused"
ON_TRIAL = "a new release is on trial, and its stores' schema changed"

Phase = Literal["none", "running", "paused", "failed", "aborted", "done"]
_log = logging.getLogger("freehold.upgrade")


class Conducted(msgspec.Struct, frozen=True, tag="upgrade_conducted"):
    """How an upgrade goes, as the node that conducts it keeps it: durable, so that its own restart ends nothing."""

    paper: Cosigned
    phase: Phase
    why: str = ""
    taking: str = ""
    """The node that took the paper up and is not back yet."""
    since_ms: int = 0
    word_ms: int = 0
    """When the newest word of an admin about it was signed (wall ms)."""


class Look(msgspec.Struct, frozen=True, tag="upgrade_look"):
    """Asks how a node stands."""


class TakeUp(msgspec.Struct, frozen=True, tag="upgrade_take"):
    """Asks a node to run what an admin's paper says."""

    paper: Cosigned


class Hand(msgspec.Struct, frozen=True, tag="upgrade_hand"):
    """Hands a node an admin's paper that pauses, resumes or aborts."""

    paper: Cosigned


class UpgradeStanding(msgspec.Struct, frozen=True, tag="upgrade_standing"):
    """How a node stands: what it runs, whether on trial, what it gave up; and by which rule it did not do what was asked."""

    version: str
    trial: bool = False
    failed: Failed | None = None
    conducted: Conducted | None = None
    rule: str = ""
    detail: str = ""


class NotTakenError(Exception):
    """A paper was not taken up; `rule` is GATE where that may change by itself."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule, self.detail = rule, detail


class Upgrader:
    """Takes upgrades up, conducts them, and judges the release that it runs itself while that is on trial."""

    def __init__(
        self,
        core: NodeCore,
        transport: Transport,
        artifacts: ArtifactStore,
        ensure: Callable[[bytes], Awaitable[None]],
        workloads: Workloads,
        *,
        folder: Path,
        version: str,
        trial: str,
        clock: Callable[[], Now],
        relaunch: Callable[[], None] | None,
    ) -> None:
        """Take what is read, what brings artifacts here, this release's version, and what starts another one in its place.

        `trial` is the name of the release that runs on trial, "" if this one does not. `relaunch` is None where this process
        is no daemon of its own. Call before the transport runs.
        """
        self._core, self._transport, self._artifacts, self._ensure = core, transport, artifacts, ensure
        self._workloads, self._version, self._clock, self._relaunch = workloads, version, clock, relaunch
        self._file = folder / FILE
        self._folder = folder
        self._here = ReleasesHere(folder)
        self._on_trial = trial
        self._preparing = asyncio.Lock()
        self._leaving = False
        self.waits_for = ""
        """Why the next node does not begin yet, as the conductor sees it."""
        self._conducted = self._read()
        transport.serve(PROTOCOL, self._serve)

    @property
    def hold(self) -> str:
        """Why this node does not vote for now: a vote is not forgotten if its stores go back. "" if it may."""
        return ON_TRIAL if self._on_trial and copy_folder(self._folder).exists() else ""

    # --- what the API asks --------------------------------------------------------------------------------------------

    def standing(self, rule: str = "", detail: str = "") -> UpgradeStanding:
        """How this node stands."""
        return UpgradeStanding(
            self._version, bool(self._on_trial), self._here.read().failed, self._conducted, rule, detail
        )

    async def standings(self) -> dict[PeerId, UpgradeStanding | None]:
        """How every confirmed member stands; None for one that is not reached or does not know of upgrades."""
        others = [node.node for node in self._core.state.nodes if node.node != self._core.node]
        upgrade_standings = await asyncio.gather(*(self._look_at(node) for node in others))
        return {self._core.node: self.standing(), **dict(zip(others, upgrade_standings, strict=True))}

    async def hand(self, signed: Cosigned) -> None:
        """Do what an admin's paper says: begin to conduct, or pause, resume or abort. Raises NotTakenError."""
        paper = self._open(signed)
        if paper.action == "start":
            await self._begin(signed, paper)
            return
        if self._conducts(paper.order):
            self._change(paper)
        else:
            standings = await self.standings()
            conductor = next((node for node, standing in standings.items() if _conducts(standing, paper.order)), None)
            if conductor is None or conductor == self._core.node:
                raise NotTakenError(REFUSED, "no node that is reached conducts that upgrade")
            answer = await self._ask(conductor, Hand(signed), ASK_TIMEOUT_S)
            if answer.rule:
                raise NotTakenError(answer.rule, answer.detail)
            standings.pop(conductor)
        if paper.action == "abort":
            await self._give_up_trials(signed, paper)

    async def _begin(self, signed: Cosigned, paper: UpgradePaper) -> None:
        for node, standing in (await self.standings()).items():
            going = standing.conducted if standing is not None else None
            if going is not None and going.phase in {"running", "paused"}:
                raise NotTakenError(REFUSED, f"{node} conducts an upgrade already: abort it first")
            if (
                standing is not None
                and standing.version != paper.version
                and (why := following_problem(standing.version, paper.version))
            ):
                raise NotTakenError(REFUSED, f"{node} runs {standing.version}: {why}")
        missing = [wheel.name for wheel in paper.wheels if not self._artifacts.has(wheel.digest)]
        if missing:
            raise NotTakenError(REFUSED, f"the bytes of {missing[0]} are not here: upload them first")
        self._keep(Conducted(signed, "running", since_ms=self._clock().wall_ms))

    def _change(self, paper: UpgradePaper) -> None:
        assert self._conducted is not None
        phase = self._conducted.phase
        allowed = {"pause": ("running",), "resume": ("paused",), "abort": ("running", "paused")}[paper.action]
        if phase not in allowed:
            raise NotTakenError(REFUSED, f"the upgrade is {phase}")
        if paper.action == "resume" and paper.at_ms < self._conducted.word_ms:  # any member can bring an old one again
            raise NotTakenError(REFUSED, "an admin said something newer of it: sign it again")
        now: dict[str, Phase] = {"pause": "paused", "resume": "running", "abort": "aborted"}
        why = "" if paper.action == "resume" else "by an admin"
        word_ms = max(self._conducted.word_ms, paper.at_ms)
        self._keep(replace(self._conducted, phase=now[paper.action], why=why, word_ms=word_ms))

    async def _give_up_trials(self, signed: Cosigned, paper: UpgradePaper) -> None:
        """Have every node on trial go back; the nodes that were found healthy stay as they are."""
        if self._withdraw(paper.order):
            return
        for node, standing in (await self.standings()).items():
            if standing is not None and standing.trial and node != self._core.node:
                with contextlib.suppress(StreamError, TimeoutError, DecodeError):
                    await self._ask(node, Hand(signed), ASK_TIMEOUT_S)

    def _withdraw(self, order: bytes) -> bool:
        """Go back if this node tries that release; return whether it does."""
        trial = self._here.read().trial
        if not self._on_trial or trial is None or trial.order != order.hex():
            return False
        self._give_up("an admin aborted the upgrade")
        return True

    # --- one node's part ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Judge the release that runs here, if it is on trial, then conduct what there is to conduct; until cancelled."""
        if self._on_trial:
            await self._judge()
        while True:
            if self._conducted is not None and self._conducted.phase == "running":
                try:
                    await self._step(self._conducted, self._open(self._conducted.paper))
                except NotTakenError as error:
                    self._end("failed", error.detail)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _judge(self) -> None:
        """Wait until this release was healthy for the whole window; then it is the one that runs."""
        well_s, trial = 0.0, self._here.read().trial
        while trial is not None and well_s < trial.window_s:
            await asyncio.sleep(LOOK_EVERY_S)
            why = self._illness(trial)
            well_s = 0.0 if why else well_s + LOOK_EVERY_S
            if self.waits_for != why:
                _log.info("a release on trial: %s", why or "is well", extra={"event": "upgrade.trial"})
            self.waits_for = why
        chosen = self._here.read()
        if chosen.trial is None:
            return
        self._here.write(replace(chosen, name=chosen.trial.name, version=chosen.trial.version, trial=None, failed=None))
        self._on_trial = ""
        await asyncio.to_thread(forget_copies, self._folder)
        await asyncio.to_thread(self._here.tidy)
        _log.info("%s is found healthy and runs from now on", self._version, extra={"event": "upgrade.kept"})

    def _illness(self, trial: Trial) -> str:
        """Why this node is not as well as before, "" if it is."""
        core = self._core
        if core.chain.stalled:
            return f"it cannot follow the chain: {core.chain.stalled}"
        if not self._workloads.alive:
            return "no worker is up"
        others = [voter.node for voter in core.state.voters if voter.node != core.node]
        if others and not set(others) & set(core.hello.admitted()):
            return "no other voter is connected"
        if core.chain.muted not in {"", ON_TRIAL}:
            return f"it does not vote: {core.chain.muted}"
        if not core.chain.muted and self._votes(core.node) and not core.chain.speaking:
            return "it does not vote yet"
        due = {f"{project}/{environment}" for project, environment in self._workloads.running}
        for lane in trial.served:
            project, _, environment = lane.partition("/")
            if lane in due and not self._workloads.serves((project, environment), "any"):
                return f"it does not serve {project} in {environment}"
        return ""

    async def take_up(self, signed: Cosigned) -> None:
        """Prepare what an admin's paper says, then start it on trial in this process's place. Raises NotTakenError."""
        paper = self._open(signed)
        if self._relaunch is None:
            raise NotTakenError(REFUSED, "this node is run by another command, which cannot be upgraded")
        if problem := following_problem(self._version, paper.version):
            raise NotTakenError(REFUSED, problem)
        order = digest(signed.payload).hex()
        failed = self._here.read().failed
        if failed is not None and failed.order == order:
            raise NotTakenError(REFUSED, f"it was tried and went back: {failed.why}")
        if self._on_trial or self._preparing.locked() or self._leaving:
            raise NotTakenError(GATE, "it is at work on an upgrade already")
        async with self._preparing:
            if gate := self.gate(self._core.node):
                raise NotTakenError(GATE, gate)
            try:
                for wheel in paper.wheels:
                    await self._ensure(wheel.digest)
                paths = [(wheel.name, self._artifacts.path(wheel.digest)) for wheel in paper.wheels]
                name = await asyncio.to_thread(self._here.prepare, paper.version, order, paths)
            except (ArtifactError, ReleaseError, OSError) as error:
                raise NotTakenError(REFUSED, str(error)) from None
            if gate := self.gate(self._core.node):
                raise NotTakenError(GATE, gate)
            served = tuple(
                f"{project}/{environment}"
                for project, environment in sorted(self._workloads.running)
                if self._workloads.serves((project, environment), "any")
            )
            trial = Trial(name, paper.version, order, paper.window_s, served)
            self._here.write(replace(self._here.read(), trial=trial, failed=None))
            self._leaving = True
        _log.info("%s is prepared and starts on trial", paper.version, extra={"event": "upgrade.prepared"})
        asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._relaunch)

    def gate(self, node: PeerId) -> str:
        """Why `node` must not stop now, as far as this one sees: a voter is missing, a rollout is under way; "" if it may."""
        core = self._core
        here = {*core.hello.admitted(), core.node, node}
        for voter in core.state.voters:
            if voter.node not in here:
                return f"the voter {voter.node} is not reached"
        if node == core.node and self._votes(node) and not core.chain.speaking:
            return "it does not vote now"
        for lane in core.state.lanes:
            if lane.rollout is not None:
                return f"a rollout of {lane.project} in {lane.environment} is under way"
        return ""

    def _give_up(self, why: str) -> None:
        """Have the release that runs here on trial go back."""
        chosen = self._here.read()
        if chosen.trial is None or self._relaunch is None:
            return
        self._here.write(replace(chosen, trial=replace(chosen.trial, bad=why)))
        self._relaunch()

    # --- conducting ---------------------------------------------------------------------------------------------------

    async def _step(self, conducted: Conducted, paper: UpgradePaper) -> None:
        """Look at everybody, and have the next one begin if it may. Raises NotTakenError if the upgrade cannot go on."""
        standings = await self.standings()
        if self._conducted != conducted:  # an admin spoke meanwhile
            return
        order = digest(conducted.paper.payload).hex()
        for node, upgrade_standing in standings.items():
            if (
                upgrade_standing is not None
                and upgrade_standing.failed is not None
                and upgrade_standing.failed.order == order
            ):
                raise NotTakenError(REFUSED, f"{node} went back: {upgrade_standing.failed.why}")
        if conducted.taking:
            if not self._is_back(conducted, standings.get(PeerId(conducted.taking)), paper):
                return
            conducted = self._keep(replace(conducted, taking="", since_ms=self._clock().wall_ms))
        due = [
            node
            for node in self._in_turn(standings)
            if (upgrade_standing := standings[node]) is None or upgrade_standing.version != paper.version
        ]
        if not due:
            self._end("done", "")
            return
        self.waits_for = self._gate_of_all(standings) or self.gate(due[0])
        if not self.waits_for:
            await self._have_it_taken_up(due[0], conducted)

    def _is_back(self, conducted: Conducted, one: UpgradeStanding | None, paper: UpgradePaper) -> bool:
        """Whether the node that took the paper up runs it for good. Raises NotTakenError if it has been away too long."""
        if one is not None and one.version == paper.version and not one.trial:
            return True
        away_s = (self._clock().wall_ms - conducted.since_ms) / 1000
        if away_s > BACK_WITHIN_S + paper.window_s:
            raise NotTakenError(REFUSED, f"{conducted.taking} did not come back within {away_s:.0f} s")
        self.waits_for = f"{conducted.taking} " + ("is on trial" if one is not None and one.trial else "starts anew")
        return False

    async def _have_it_taken_up(self, node: PeerId, conducted: Conducted) -> None:
        # Noted before it is asked: if this process ends meanwhile, the next one waits for that node to be back.
        conducted = self._keep(replace(conducted, taking=node, since_ms=self._clock().wall_ms))
        try:
            if node == self._core.node:
                await self.take_up(conducted.paper)
                return
            answer = await self._ask(node, TakeUp(conducted.paper), PREPARE_TIMEOUT_S)
            if answer.rule:
                raise NotTakenError(answer.rule, answer.detail)
        except (StreamError, TimeoutError, DecodeError) as error:
            # It may have taken it up and gone. If it did not, `BACK_WITHIN_S` says so.
            _log.warning("no answer of %s: %s", node, error, extra={"event": "upgrade.no-answer"})
        except NotTakenError as error:
            if self._conducted is not None:
                self._keep(replace(self._conducted, taking=""))
            if error.rule != GATE:
                raise NotTakenError(error.rule, f"{node}: {error.detail}") from None
            self.waits_for = f"{node}: {error.detail}"

    def _gate_of_all(self, standings: dict[PeerId, UpgradeStanding | None]) -> str:
        for node, standing in standings.items():
            if standing is None and node in self._core.hello.admitted():
                return f"{node} does not say how it stands; a release from before this one is upgraded by hand"
            if standing is None:
                return f"{node} is not reached"
            if standing.trial:
                return f"{node} is on trial"
        return ""

    def _in_turn(self, standings: dict[PeerId, UpgradeStanding | None]) -> list[PeerId]:
        """In which order nodes begin: those that do not vote first, this one last."""
        return sorted(standings, key=lambda node: (node == self._core.node, self._votes(node), node))

    def _votes(self, node: PeerId) -> bool:
        return any(voter.node == node for voter in self._core.state.voters)

    def _conducts(self, order: bytes) -> bool:
        return _conducts(self.standing(), order)

    def _end(self, phase: Phase, why: str) -> None:
        assert self._conducted is not None
        self.waits_for = ""
        self._keep(replace(self._conducted, phase=phase, why=why, taking=""))
        _log.log(
            logging.INFO if phase == "done" else logging.ERROR, "the upgrade is %s%s", phase, f": {why}" if why else "",
            extra={"event": f"upgrade.{phase}"},
        )  # fmt: skip

    def _keep(self, conducted: Conducted) -> Conducted:
        """Make the state of an upgrade durable before anything follows from it."""
        write_private(self._file, encode(conducted))
        self._conducted = conducted
        return conducted

    def _read(self) -> Conducted | None:
        try:
            conducted: Conducted = decode(self._file.read_bytes(), Conducted, ANSWER_MAX_BYTES)
        except (FileNotFoundError, DecodeError):
            return None
        return conducted

    def _open(self, signed: Cosigned) -> UpgradePaper:
        core = self._core
        try:
            return open_upgrade(
                core.trust.verifier, core.trust.mesh, core.state.admins, core.state.threshold, signed,
                self._clock().wall_ms,
            )  # fmt: skip
        except DecodeError as error:
            raise NotTakenError("upgrade.paper", f"the paper is refused: {error}") from None

    # --- the wire -----------------------------------------------------------------------------------------------------

    async def _look_at(self, node: PeerId) -> UpgradeStanding | None:
        try:
            return await self._ask(node, Look(), ASK_TIMEOUT_S)
        except (StreamError, TimeoutError, DecodeError):
            return None

    async def _ask(self, node: PeerId, question: Look | TakeUp | Hand, timeout_s: float) -> UpgradeStanding:
        """Ask one member. Raises StreamError, TimeoutError, DecodeError."""
        async with asyncio.timeout(timeout_s), await self._transport.open_stream(node, PROTOCOL) as stream:
            await stream.write_block(encode(question))
            standing: UpgradeStanding = decode(
                await stream.read_block(ANSWER_MAX_BYTES) or b"", UpgradeStanding, ANSWER_MAX_BYTES
            )
            return standing

    async def _serve(self, stream: Stream) -> None:
        core = self._core
        if core.trust.standing(stream.peer, self._clock().wall_ms) is not Standing.MEMBER:
            raise StreamError("upgrade.not-a-member")
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                data = await stream.read_block(ASK_MAX_BYTES)
            question: Look | TakeUp | Hand = decode(data or b"", Look | TakeUp | Hand, ASK_MAX_BYTES)
        except (DecodeError, TimeoutError):
            raise StreamError("upgrade.malformed") from None
        rule = detail = ""
        try:
            if isinstance(question, TakeUp):
                await self.take_up(question.paper)
            elif isinstance(question, Hand):
                self._take_word(question.paper)
        except NotTakenError as error:
            rule, detail = error.rule, error.detail
        await stream.write_block(encode(self.standing(rule, detail)))
        stream.finish()

    def _take_word(self, signed: Cosigned) -> None:
        """Take an admin's word from another node: as the one that conducts, or as one that is on trial."""
        paper = self._open(signed)
        if paper.action == "start":
            raise NotTakenError(REFUSED, "an upgrade is begun by the node that is asked")
        if self._conducts(paper.order):
            self._change(paper)
        elif not (paper.action == "abort" and self._withdraw(paper.order)):
            raise NotTakenError(REFUSED, "this node does not conduct that upgrade")


def _conducts(one: UpgradeStanding | None, order: bytes) -> bool:
    going = one.conducted if one is not None else None
    return going is not None and digest(going.paper.payload) == order and going.phase in {"running", "paused"}
