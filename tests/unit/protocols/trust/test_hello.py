"""Hello, joining and renewal: two machines talking through a loss-free pipe, and one machine facing nonsense."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.envelope import DecodeError, Signed, decode, encode
from protocols.keys import peer_id
from protocols.machine import (
    Disconnect,
    Effect,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Received,
    Reject,
    Send,
    Tick,
)
from protocols.trust.admission import JoinPapers
from protocols.trust.certificates import LIFETIME_MS, RENEW_AFTER_MS
from protocols.trust.hello import (
    ALLOWED,
    HELLO_TIMEOUT_MS,
    JUDGE_EVERY_MS,
    NONCE_BYTES,
    PEERS_MAX,
    QUARANTINE_MS,
    Admitted,
    ChainHead,
    Challenge,
    Echo,
    Hello,
    HelloMachine,
    HelloMessage,
    Invited,
    PeerCloned,
    Refused,
    RefusedBy,
    Welcome,
    keep_connection,
)
from protocols.trust.invites import Address, read_line, write_line
from protocols.trust.joining import Joined, JoinMachine
from protocols.trust.renewal import (
    ASK_EVERY_MS,
    CHECK_EVERY_MS,
    NotRenewed,
    RenewalMachine,
    Renewed,
    RenewedCertificate,
    RenewMe,
)
from protocols.trust.store import CREDENTIALS_MAX, Credentials, Standing, TrustChanged, TrustStore
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, SeededEntropy, World, node_id, now, signer

WORLD = World()
FOUNDER = node_id("founder")


def machine(name: str, trust: TrustStore, boot: bytes = b"1") -> HelloMachine:
    return HelloMachine(trust, signer(name), VERIFIER, SeededEntropy(boot[0]), boot_nonce=boot * 8)


def notified(effects: Sequence[Effect]) -> list[object]:
    return [effect.event for effect in effects if isinstance(effect, Notify)]


def rules(effects: Sequence[Effect]) -> list[str]:
    return [effect.rule for effect in effects if isinstance(effect, Reject)]


class Pipe:
    """Carries messages between two machines until both are quiet, and keeps every effect."""

    def __init__(self, one: PeerId, one_machine: HelloMachine, two: PeerId, two_machine: HelloMachine | JoinMachine):
        self.ends: dict[PeerId, HelloMachine | JoinMachine] = {one: one_machine, two: two_machine}
        self.other = {one: two, two: one}
        self.effects: dict[PeerId, list[Effect]] = {one: [], two: []}

    def connect(self, at: Now | None = None) -> None:
        at = at or now()
        queue: list[tuple[PeerId, object]] = []
        for name, end in self.ends.items():
            queue += self._perform(name, end.handle(PeerConnected(self.other[name], inbound=False), at))
        while queue:
            name, message = queue.pop(0)
            if any(isinstance(effect, Disconnect) for effect in self.effects[name]):
                continue
            wire = decode(encode(message), HelloMessage)
            queue += self._perform(name, self.ends[name].handle(Received(self.other[name], wire), at))

    def _perform(self, name: PeerId, effects: Sequence[Effect]) -> list[tuple[PeerId, object]]:
        self.effects[name] += effects
        return [(self.other[name], effect.message) for effect in effects if isinstance(effect, Send)]


def pair(one: HelloMachine, two: HelloMachine | JoinMachine, two_name: str = "a") -> Pipe:
    pipe = Pipe(FOUNDER, one, node_id(two_name), two)
    pipe.connect()
    return pipe


def test_two_members_admit_each_other_in_one_round_trip() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    here, there = machine("founder", trust), machine("a", WORLD.trust(WORLD.certificate("a")))
    here.head = ChainHead(0, 7, b"h" * 32)
    pipe = pair(here, there)
    assert notified(pipe.effects[FOUNDER]) == [Admitted(node_id("a"), Standing.JOINED, 1, b"1" * 8, ChainHead())]
    assert notified(pipe.effects[node_id("a")]) == [Admitted(FOUNDER, Standing.MEMBER, 1, b"1" * 8, here.head)]
    assert here.admitted() == (node_id("a"),)
    assert here.standing(node_id("a")) is Standing.JOINED
    assert here.deadline_ms() == JUDGE_EVERY_MS
    sent = [effect for effect in pipe.effects[FOUNDER] if isinstance(effect, Send)]
    assert len(sent) == 2


def test_a_member_nobody_told_us_about_is_believed_by_its_credentials() -> None:
    here = machine("founder", WORLD.trust())
    pair(here, machine("a", WORLD.trust(WORLD.certificate("a"))))
    assert here.standing(node_id("a")) is Standing.JOINED


def refused_with(pipe: Pipe) -> str:
    refusals = [
        effect.message for effect in pipe.effects[FOUNDER]
        if isinstance(effect, Send) and isinstance(effect.message, Refused)
    ]  # fmt: skip
    assert len(refusals) == 1
    assert refusals[0].detail
    assert rules(pipe.effects[FOUNDER]) == [refusals[0].rule]
    assert isinstance(pipe.effects[FOUNDER][-1], Disconnect)
    answers = [event for event in notified(pipe.effects[node_id("a")]) if isinstance(event, RefusedBy)]
    assert [answer.rule for answer in answers] == [refusals[0].rule]
    return refusals[0].rule


def test_a_stranger_is_told_so() -> None:
    assert refused_with(pair(machine("founder", WORLD.trust()), machine("a", WORLD.trust()))) == "hello.stranger"


def test_a_revoked_node_is_told_so() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    trust.learn_revocation(WORLD.revocation("node", signer("a").public_key))
    pipe = pair(machine("founder", trust), machine("a", WORLD.trust(WORLD.certificate("a"))))
    assert refused_with(pipe) == "hello.revoked"


def test_an_expired_node_is_admitted_to_renew_and_not_counted_among_the_admitted() -> None:
    old = WORLD.certificate("a", wall_ms=WALL_MS - LIFETIME_MS)
    here = machine("founder", WORLD.trust(old))
    pair(here, machine("a", WORLD.trust(old)))
    assert here.standing(node_id("a")) is Standing.EXPIRED
    assert here.admitted() == ()
    assert ALLOWED[Standing.EXPIRED] == ("hello", "renewal")


def hello_of(**changes: object) -> Hello:
    trust = WORLD.trust(WORLD.certificate("a"))
    hello = Hello(WORLD.mesh, 1, 1, b"b" * 8, b"c" * 16, ChainHead(), trust.credentials(node_id("a")))
    return msgspec.structs.replace(hello, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mesh": b"m" * 32}, "hello.wrong-mesh"),
        ({"version_min": 2, "version_max": 3}, "hello.version"),
        ({"version_min": 0, "version_max": 0}, "hello.version"),
        ({"boot_nonce": b"short"}, "hello.malformed"),
        ({"credentials": Credentials((WORLD.certificate("a"),) * (CREDENTIALS_MAX + 1))}, "hello.malformed"),
        ({"credentials": Credentials((WORLD.certificate("a", by=signer("eve")),))}, "certificate.not-an-issuer"),
        ({"papers": JoinPapers(WORLD.certificate("a"), WORLD.certificate("a"))}, None),
    ],
)
def test_an_unfitting_hello_is_refused_by_name(changes: dict[str, object], expected: str | None) -> None:
    here = machine("founder", WORLD.trust())
    here.handle(PeerConnected(node_id("a"), inbound=True), now())
    effects = here.handle(Received(node_id("a"), hello_of(**changes)), now())
    if expected is None:
        sent = [type(effect.message) for effect in effects if isinstance(effect, Send)]
        assert sent == [Welcome, Echo], "papers of somebody already known are not looked at, only answered"
    else:
        assert rules(effects) == [expected]
        assert here.deadline_ms() is None


def test_nothing_but_hello_is_allowed_before_admission() -> None:
    here = machine("founder", WORLD.trust(WORLD.certificate("a")))
    here.handle(PeerConnected(node_id("a"), inbound=True), now())
    assert rules(here.handle(Received(node_id("a"), RenewMe()), now())) == ["hello.not-admitted"]
    assert rules(here.handle(Received(node_id("a"), Echo(b"", b"")), now())) == ["hello.not-connected"]
    assert rules(here.handle(Received(node_id("b"), Echo(b"", b"")), now())) == ["hello.not-connected"]


def test_an_unfinished_hello_ends_after_five_seconds_or_64_kib() -> None:
    here = machine("founder", WORLD.trust())
    here.handle(PeerConnected(node_id("a"), inbound=True), now(1_000))
    assert here.deadline_ms() == 1_000 + HELLO_TIMEOUT_MS
    assert here.handle(Tick(), now(5_999)) == []
    assert rules(here.handle(Tick(), now(6_000))) == ["hello.timeout"]
    here.handle(PeerConnected(node_id("b"), inbound=True), now())
    effects: Sequence[Effect] = []
    for _ in range(70):
        effects = here.handle(Received(node_id("b"), Challenge(b"c" * 1024)), now())
        if rules(effects):
            break
    assert rules(effects) == ["hello.too-much"]


def test_an_answer_to_a_question_that_was_not_asked_is_rejected() -> None:
    here = machine("founder", WORLD.trust(WORLD.certificate("a")))
    here.handle(PeerConnected(node_id("a"), inbound=True), now())
    here.handle(Received(node_id("a"), hello_of()), now())
    assert rules(here.handle(Received(node_id("a"), Echo(b"z" * 16, b"b" * 8)), now())) == ["hello.echo"]
    assert here.standing(node_id("a")) is None


def asked(effects: Sequence[Effect]) -> bytes:
    return next(
        effect.message.challenge for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, Hello | Challenge)
    )  # fmt: skip


class Faked:
    """Plays the peer "a" by hand against one machine."""

    def __init__(self) -> None:
        self.trust = WORLD.trust(WORLD.certificate("a"))
        self.here = machine("founder", self.trust)

    def connect(self, at: Now | None = None) -> Sequence[Effect]:
        return self.here.handle(PeerConnected(node_id("a"), inbound=True), at or now())

    def hello(self, boot: bytes) -> Sequence[Effect]:
        return self.here.handle(Received(node_id("a"), hello_of(boot_nonce=boot * 8)), now())

    def echo(self, challenge: bytes, boot: bytes) -> Sequence[Effect]:
        return self.here.handle(Received(node_id("a"), Echo(challenge, boot * 8)), now())

    def close(self) -> None:
        self.here.handle(PeerDisconnected(node_id("a")), now())


def test_a_restarted_peer_is_admitted_again_even_when_its_old_connection_still_hangs() -> None:
    peer = Faked()
    first = asked(peer.connect())
    peer.hello(b"A")
    assert notified(peer.echo(first, b"A"))
    second = asked(peer.connect())
    assert peer.here.standing(node_id("a")) is Standing.JOINED
    peer.hello(b"B")
    assert peer.here.standing(node_id("a")) is None
    assert [type(event) for event in notified(peer.echo(second, b"B"))] == [Admitted]


def test_an_old_process_that_answers_after_a_new_one_appeared_is_a_clone() -> None:
    peer = Faked()
    first = asked(peer.connect())
    peer.hello(b"A")
    peer.echo(first, b"A")
    second = asked(peer.connect())
    question = asked(peer.hello(b"B"))
    peer.echo(second, b"B")
    effects = peer.echo(question, b"A")
    assert notified(effects) == [PeerCloned(node_id("a"), (b"A" * 8, b"B" * 8))]
    assert rules(effects) == ["hello.cloned"]
    assert rules(peer.connect()) == ["hello.cloned"]
    assert asked(peer.connect(now(QUARANTINE_MS)))


def test_a_clone_is_noticed_whichever_of_the_two_answers_first() -> None:
    peer = Faked()
    first = asked(peer.connect())
    peer.hello(b"A")
    peer.echo(first, b"A")
    peer.connect()
    question = asked(peer.hello(b"B"))
    assert [type(event) for event in notified(peer.echo(question, b"B"))] == [Admitted]
    assert notified(peer.echo(question, b"A")) == [PeerCloned(node_id("a"), (b"A" * 8, b"B" * 8))]


def test_an_answer_that_comes_twice_changes_nothing_and_one_that_nobody_asked_for_is_rejected() -> None:
    peer = Faked()
    question = asked(peer.connect())
    peer.hello(b"A")
    assert notified(peer.echo(question, b"A"))
    assert peer.echo(question, b"A") == []
    assert rules(peer.echo(b"?" * NONCE_BYTES, b"A")) == ["hello.echo"]


def test_clones_that_take_turns_are_noticed_and_a_restart_never_is() -> None:
    peer = Faked()
    for boot in (b"A", b"B", b"C"):
        question = asked(peer.connect())
        peer.hello(boot)
        assert [type(event) for event in notified(peer.echo(question, boot))] == [Admitted]
        peer.close()
    question = asked(peer.connect())
    peer.hello(b"A")
    assert [type(event) for event in notified(peer.echo(question, b"A"))] == [PeerCloned]


def test_a_second_connection_of_the_same_process_changes_nothing() -> None:
    peer = Faked()
    first = asked(peer.connect())
    peer.hello(b"A")
    peer.echo(first, b"A")
    second = asked(peer.connect())
    peer.hello(b"A")
    assert peer.echo(second, b"A") == []
    assert peer.here.standing(node_id("a")) is Standing.JOINED


def test_a_certificate_that_runs_out_on_a_live_connection_is_noticed_within_the_hour() -> None:
    peer = Faked()
    question = asked(peer.connect())
    peer.hello(b"A")
    peer.echo(question, b"A")
    due_ms = peer.here.deadline_ms()
    assert due_ms is not None
    assert due_ms <= now().mono_ms + JUDGE_EVERY_MS
    told = notified(peer.here.handle(Tick(), Now(due_ms, WALL_MS + LIFETIME_MS + 1)))
    assert [(type(entry), entry.standing) for entry in told] == [(Admitted, Standing.EXPIRED)]
    later_ms = peer.here.deadline_ms()
    assert later_ms is not None
    assert later_ms > due_ms


def test_a_revocation_closes_a_live_connection_and_a_confirmation_raises_it() -> None:
    peer = Faked()
    question = asked(peer.connect())
    peer.hello(b"A")
    peer.echo(question, b"A")
    assert peer.here.handle(TrustChanged(), now()) == []
    peer.trust.chain_decided(peer.trust.admins, 1, [node_id("a")])
    raised = notified(peer.here.handle(TrustChanged(), now()))
    assert [event.standing for event in raised if isinstance(event, Admitted)] == [Standing.MEMBER]
    peer.trust.learn_revocation(WORLD.revocation("node", signer("a").public_key))
    assert rules(peer.here.handle(TrustChanged(), now())) == ["hello.revoked"]


def test_a_revocation_between_hello_and_echo_is_noticed() -> None:
    peer = Faked()
    question = asked(peer.connect())
    peer.hello(b"A")
    peer.trust.learn_revocation(WORLD.revocation("node", signer("a").public_key))
    assert rules(peer.echo(question, b"A")) == ["hello.revoked"]


def test_connections_are_bounded_and_the_gone_make_room() -> None:
    here = machine("founder", WORLD.trust())
    for number in range(PEERS_MAX):
        here.handle(PeerConnected(PeerId(f"peer{number}"), inbound=True), now())
    full = here.handle(PeerConnected(node_id("a"), inbound=True), now())
    assert full == [Disconnect(node_id("a"), "too many connections")]
    here.handle(PeerDisconnected(PeerId("peer7")), now())
    here.handle(PeerDisconnected(PeerId("nobody")), now())
    assert asked(here.handle(PeerConnected(node_id("a"), inbound=True), now()))


def test_of_two_simultaneous_connections_both_sides_keep_the_same_one() -> None:
    low, high = PeerId("a"), PeerId("b")
    assert keep_connection(low, high, outbound=True)
    assert keep_connection(high, low, outbound=False)
    assert not keep_connection(low, high, outbound=False)
    assert not keep_connection(high, low, outbound=True)


# --- joining ----------------------------------------------------------------------------------------------------------


def joiner(name: str = "a", invite: Signed | None = None, pin: PeerId = FOUNDER) -> JoinMachine:
    line = read_line(write_line(b"k" * 32, invite or WORLD.invite(), (Address("/ip4/127.0.0.1/tcp/1", pin),)))
    return JoinMachine(line, signer("invite"), signer(name), VERIFIER, SeededEntropy(5), name=name)


def test_an_invited_node_joins_and_comes_back_as_a_member() -> None:
    trust = WORLD.trust()
    here, there = machine("founder", trust), joiner()
    pipe = pair(here, there)
    joined = there.joined
    assert notified(pipe.effects[node_id("a")]) == [joined]
    assert isinstance(joined, Joined)
    assert joined.genesis == WORLD.genesis_bytes
    events = notified(pipe.effects[FOUNDER])
    assert [type(event) for event in events] == [Invited, Admitted]
    kinds = [type(effect.message) for effect in pipe.effects[FOUNDER] if isinstance(effect, Send)]
    assert kinds == [Hello, Welcome, Echo]
    own = TrustStore(VERIFIER, joined.genesis)
    own.learn_credentials(joined.admitted_by_credentials, WALL_MS)
    own.learn_credentials(joined.credentials, WALL_MS)
    here.handle(PeerDisconnected(node_id("a")), now())
    again = pair(here, machine("a", own, boot=b"2"))
    assert [type(event) for event in notified(again.effects[FOUNDER])] == [Admitted]
    assert there.deadline_ms() is not None
    there.handle(PeerDisconnected(FOUNDER), now())
    assert there.deadline_ms() is None
    assert there.handle(PeerConnected(FOUNDER, inbound=False), now()) == []


def test_a_newcomer_whose_welcome_was_lost_is_welcomed_again_here_and_elsewhere() -> None:
    other = WORLD.certificate("i")
    trust, there = WORLD.trust(other), WORLD.trust(other)
    here = machine("founder", trust)
    pair(here, joiner())  # the founder let it in, and the line broke before it heard
    here.handle(PeerDisconnected(node_id("a")), now())
    again = joiner()
    pipe = pair(here, again)
    assert isinstance(again.joined, Joined)
    assert [type(event) for event in notified(pipe.effects[FOUNDER])] == [Admitted], "no second use, no new certificate"
    there.learn_credentials(trust.credentials(node_id("a")), WALL_MS)
    late = joiner(pin=node_id("i"))
    Pipe(node_id("i"), machine("i", there), node_id("a"), late).connect()
    assert isinstance(late.joined, Joined), "a member that may not admit can still tell"


def test_a_second_node_with_the_same_invite_is_told_that_it_is_spent() -> None:
    here = machine("founder", WORLD.trust())
    pair(here, joiner("x"), "x")
    assert refused_with(pair(here, joiner("a"))) == "invite.spent"


def test_a_join_request_made_for_another_key_is_refused() -> None:
    here = machine("founder", WORLD.trust())
    here.handle(PeerConnected(node_id("a"), inbound=True), now())
    papers = WORLD.papers("b", WORLD.invite())
    hello = hello_of(credentials=Credentials(), papers=papers)
    assert rules(here.handle(Received(node_id("a"), hello), now())) == ["invite.join-key"]


def test_two_nodes_admitted_elsewhere_with_one_use_are_limited_here() -> None:
    issuer = WORLD.certificate("i", ("issuer", "worker"))
    here_trust, there_trust = WORLD.trust(issuer), WORLD.trust(issuer)
    there_trust.chain_decided(there_trust.admins, 1, [node_id("i")])
    here = machine("founder", here_trust)
    pair(here, joiner("x"), "x")
    elsewhere = machine("i", there_trust)
    other = joiner("a", pin=node_id("i"))
    Pipe(node_id("i"), elsewhere, node_id("a"), other).connect()
    assert other.joined is not None
    own = TrustStore(VERIFIER, WORLD.genesis_bytes)
    own.learn_credentials(other.joined.admitted_by_credentials, WALL_MS)
    own.learn_credentials(other.joined.credentials, WALL_MS)
    pair(here, machine("a", own, boot=b"2"))
    assert here.standing(node_id("a")) is Standing.LIMITED
    assert ALLOWED[Standing.LIMITED] == ("hello", "sync")
    judged = notified(here.handle(TrustChanged(), now()))
    assert [(event.peer, event.standing) for event in judged if isinstance(event, Admitted)] == [
        (node_id("x"), Standing.LIMITED)
    ]


def test_a_contested_key_is_not_certified_when_it_asks_again() -> None:
    issuer = WORLD.certificate("i", ("issuer", "worker"))
    trust, elsewhere = WORLD.trust(issuer), WORLD.trust(issuer)
    elsewhere.chain_decided(elsewhere.admins, 1, [node_id("i")])
    here = machine("founder", trust)
    pair(here, joiner("x"), "x")
    Pipe(node_id("i"), machine("i", elsewhere), node_id("a"), joiner("a", pin=node_id("i"))).connect()
    bundle = elsewhere.bundle_for(signer("a").public_key)
    assert bundle is not None
    trust.learn_bundle(bundle)
    assert refused_with(pair(here, joiner("a"))) == "certificate.not-renewable"


def test_a_joiner_talks_to_pinned_peers_only_and_gives_up_after_five_seconds() -> None:
    there = joiner()
    hung_up = there.handle(PeerConnected(node_id("eve"), inbound=False), now())
    assert hung_up == [Disconnect(node_id("eve"), "join.not-pinned")]
    assert rules(there.handle(Received(node_id("eve"), hello_of()), now())) == ["join.not-asked"]
    there.handle(PeerConnected(FOUNDER, inbound=False), now())
    assert there.deadline_ms() == HELLO_TIMEOUT_MS
    assert there.handle(Tick(), now(HELLO_TIMEOUT_MS)) == [Disconnect(FOUNDER, "hello.timeout")]
    assert there.handle(Tick(), now(HELLO_TIMEOUT_MS)) == []


def test_a_joiner_believes_no_welcome_that_does_not_fit_its_invite() -> None:
    there = joiner()
    there.handle(PeerConnected(FOUNDER, inbound=False), now())

    def answer(welcome: object) -> list[str]:
        return rules(there.handle(Received(FOUNDER, welcome), now()))

    assert answer(Welcome(b"junk", Credentials(), Credentials())) == ["join.genesis"]
    other = World(admin=signer("other admin"))
    assert answer(Welcome(other.genesis_bytes, Credentials(), Credentials())) == ["join.genesis"]
    assert answer(Welcome(WORLD.genesis_bytes, Credentials(), Credentials())) == ["join.unproven"]
    past = Now(0, WALL_MS - DAY_MS)
    ours = WORLD.trust(WORLD.certificate("a"))
    true = Welcome(WORLD.genesis_bytes, ours.credentials(node_id("a")), ours.credentials(FOUNDER))
    (told,) = notified(there.handle(Received(FOUNDER, true), past))
    assert isinstance(told, RefusedBy)
    assert told.rule == "join.unproven"
    assert "clock" in told.detail, "whoever waits hears what to do"
    assert answer(RenewMe()) == ["join.unknown-message"]
    trust = WORLD.trust(WORLD.certificate("a"))
    good = Welcome(WORLD.genesis_bytes, trust.credentials(node_id("a")), trust.credentials(FOUNDER))
    assert answer(good) == []
    assert there.joined is not None
    assert there.handle(Received(FOUNDER, good), now()) == []


@given(st.binary(max_size=400))
def test_random_bytes_are_a_decode_error_or_a_message(data: bytes) -> None:
    try:
        message = decode(data, HelloMessage)
    except DecodeError:
        return
    here = machine("founder", WORLD.trust())
    here.handle(PeerConnected(node_id("a"), inbound=True), now())
    here.handle(Received(node_id("a"), message), now())
    assert here.standing(node_id("a")) is None


# --- renewal ----------------------------------------------------------------------------------------------------------


def renewal(name: str, trust: TrustStore) -> RenewalMachine:
    return RenewalMachine(trust, signer(name), SeededEntropy())


def test_a_node_asks_an_issuer_for_its_next_certificate_from_day_thirty() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    asker = renewal("a", trust)
    assert asker.handle(Tick(), now()) == []
    assert asker.deadline_ms() == CHECK_EVERY_MS
    assert asker.handle(Tick(), now(1)) == []
    due = now(CHECK_EVERY_MS, WALL_MS + RENEW_AFTER_MS)
    assert asker.handle(Tick(), due) == [], "no issuer is connected"
    asker.connected_issuers = (FOUNDER,)
    later = now(CHECK_EVERY_MS + 2 * ASK_EVERY_MS, WALL_MS + RENEW_AFTER_MS)
    assert asker.handle(Tick(), later) == [Send(FOUNDER, RenewMe())]
    effects = renewal("founder", WORLD.trust(WORLD.certificate("a"))).handle(Received(node_id("a"), RenewMe()), later)
    assert [type(event) for event in notified(effects)] == [Renewed]
    answer = effects[-1]
    assert isinstance(answer, Send)
    assert isinstance(answer.message, RenewedCertificate)
    got = notified(asker.handle(Received(FOUNDER, answer.message), later))
    assert got == [Renewed(node_id("a"), answer.message.certificate)]
    certificate = trust.certificate(node_id("a"))
    assert certificate is not None
    assert certificate.issued_ms == later.wall_ms


def test_an_issuer_renews_itself_also_after_expiry() -> None:
    trust = WORLD.trust()
    late = now(0, WALL_MS + LIFETIME_MS + DAY_MS)
    events = notified(renewal("founder", trust).handle(Tick(), late))
    assert [type(event) for event in events] == [Renewed]
    assert trust.standing(FOUNDER, late.wall_ms) is Standing.MEMBER


def test_renewals_that_are_not_due_not_possible_or_not_ours_are_refused() -> None:
    trust = WORLD.trust(WORLD.certificate("a"), WORLD.certificate("b"))
    issuer = renewal("founder", trust)
    assert rules(issuer.handle(Received(node_id("a"), RenewMe()), now())) == ["renewal.not-due"]
    assert rules(issuer.handle(Received(node_id("x"), RenewMe()), now())) == ["renewal.not-due"]
    late = now(0, WALL_MS + RENEW_AFTER_MS)
    no = renewal("b", trust).handle(Received(node_id("a"), RenewMe()), late)
    assert isinstance(no[0], Send)
    assert isinstance(no[0].message, NotRenewed)
    assert issuer.handle(Received(node_id("b"), no[0].message), late) == []
    foreign = RenewedCertificate(WORLD.certificate("b"))
    assert rules(renewal("a", trust).handle(Received(FOUNDER, foreign), late)) == ["renewal.unbelievable"]
    assert rules(issuer.handle(Received(FOUNDER, hello_of()), late)) == ["renewal.unknown-message"]


def test_a_revoked_issuer_renews_nobody_not_even_itself() -> None:
    trust = WORLD.trust()
    trust.learn_revocation(WORLD.revocation("node", signer("founder").public_key, last_serial=9))
    late = now(0, WALL_MS + RENEW_AFTER_MS)
    assert renewal("founder", trust).handle(Tick(), late) == []
    assert peer_id(signer("founder").public_key) in trust.revoked_nodes()
