"""Random commands against the mesh state: whatever is decided, the invariants of the lane hold and replay agrees."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols.changes.change import Plan, Stage
from protocols.envelope import decode, digest_of, encode
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.state.apply import apply, genesis_state
from protocols.state.commands import Freeze, Pause, Promote, Resume, Rollback, SignedCommand, Unfreeze
from protocols.state.model import RECENT_IDS_MAX, RETAINED_MAX, MeshState
from protocols.state.transitions import LanePhase, phase_of
from tests.support.protocols.mesh_world import MeshWorld, Shown

PLANS = (
    Plan((Stage("1"), Stage("100%"))),
    Plan((Stage("1", approve=True), Stage("50%"), Stage("100%"))),
    Plan((Stage("100%"),), auto_revert=False),
)
WORDS = st.sampled_from(("pass", "fail", "pending"))


class Recorded(MeshWorld):
    """Keeps every decided command, to replay it."""

    def judge(self, command: SignedCommand, shown: Shown | None = None) -> MeshState | Refusal:
        before = self.state
        answer = super().judge(command, shown)
        if isinstance(answer, MeshState):
            self.log.append((command, dict(shown.material) if shown else {}, self.at_ms, digest_of(answer)))
        else:
            assert self.state is before, "a refused command changes nothing"
        return answer

    @property
    def log(self) -> list[tuple[SignedCommand, dict[Digest, bytes], int, Digest]]:
        return self.__dict__.setdefault("_log", [])


class Lanes(RuleBasedStateMachine):
    @initialize()
    def found(self) -> None:
        self.w = Recorded()
        self.w.furnish()
        self.number = 0
        self.applied = self.w.state.applied

    @rule(plan=st.sampled_from(PLANS), supersede=st.booleans())
    def start(self, plan: Plan, supersede: bool) -> None:
        self.number += 1
        release = self.w.release(self.number)
        change = self.w.change(release, plan=plan)
        before = phase_of(self.w.lane)
        frozen = self.w.lane.frozen
        done = self.w.start(change, self.w.admin, shown=self.w.case_for(change, release), supersede=supersede)
        assert isinstance(done, MeshState) == (not frozen and (before is LanePhase.IDLE or supersede))

    @precondition(lambda self: self.w.lane.rollout is not None)
    @rule(word=WORDS, by_hand=st.booleans(), later_ms=st.sampled_from((0, 40_000)))
    def promote(self, word: str, by_hand: bool, later_ms: int) -> None:
        self.w.at_ms += later_ms
        rollout, lane = self.w.rollout, self.w.lane
        signers = (self.w.admin,) if by_hand else ()
        done = self.w.on_lane(Promote(rollout.id, rollout.stage), *signers, shown=self.w.verdicts(word))
        if isinstance(done, Refusal):
            return
        assert word == "pass", "StageStep: only with verifying evidence"
        assert not lane.frozen
        after = self.w.lane.rollout
        assert after is None or (after.id == rollout.id and after.stage == rollout.stage + 1)
        assert after is not None or self.w.base == rollout.candidate

    @precondition(lambda self: self.w.lane.rollout is not None)
    @rule(word=WORDS, by_hand=st.booleans())
    def abort(self, word: str, by_hand: bool) -> None:
        base = self.w.lane.base
        done = self.w.abort(*((self.w.admin,) if by_hand else ()), shown=self.w.verdicts(word))
        assert isinstance(done, Refusal) or (self.w.lane.rollout is None and self.w.lane.base == base)
        assert not by_hand or isinstance(done, MeshState)

    @precondition(lambda self: self.w.lane.rollout is not None)
    @rule(resume=st.booleans())
    def hold(self, resume: bool) -> None:
        action = Resume(self.w.rollout.id) if resume else Pause(self.w.rollout.id)
        self.w.on_lane(action, self.w.admin)

    @rule(freeze=st.booleans())
    def freeze(self, freeze: bool) -> None:
        self.w.on_lane(Freeze("because") if freeze else Unfreeze(), self.w.admin)

    @precondition(lambda self: self.w.lane.retained)
    @rule(which=st.integers(0, RETAINED_MAX - 1))
    def rollback(self, which: int) -> None:
        target = self.w.lane.retained[which % len(self.w.lane.retained)]
        done = self.w.on_lane(Rollback(target.change, "worse"), self.w.admin)
        assert isinstance(done, MeshState), "the way back is always open, frozen or not"
        assert self.w.base == target
        assert self.w.lane.rollout is None

    @invariant()
    def bounded_and_equal_after_encoding(self) -> None:
        if not hasattr(self, "w"):
            return
        state, lane = self.w.state, self.w.lane
        assert decode(encode(state), MeshState) == state
        assert state.applied >= self.applied
        self.applied = state.applied
        assert len(lane.retained) <= RETAINED_MAX
        assert len(lane.recent) <= RECENT_IDS_MAX
        changes = [entry.change for entry in (*((lane.base,) if lane.base else ()), *lane.retained)]
        assert len(changes) == len(set(changes))

    def teardown(self) -> None:
        """Replay: applying the decided commands again reproduces every state hash."""
        if not hasattr(self, "w"):
            return
        state = genesis_state(self.w.genesis, self.w.mesh)
        for command, material, at_ms, state_hash in self.w.log:
            answer = apply(state, command, material, at_ms, self.w.rules)
            assert isinstance(answer, MeshState)
            assert digest_of(answer) == state_hash
            state = answer
        assert state == self.w.state


TestLanes = Lanes.TestCase
TestLanes.settings = settings(max_examples=30, stateful_step_count=30)
