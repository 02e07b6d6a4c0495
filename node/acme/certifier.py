"""Which certificates are due, which node orders each, and what happens to one that failed.

A name's orderer is the first by rendezvous of the nodes that are up and serve it; each next one waits ten minutes longer, so
that nothing is ordered twice and nobody's failure is final. An order goes on after a crash: what is on disk is its address
and a salt, from which the node's seed makes the key again. What failed is tried again later and later, and never before the
authority's own word; that, too, outlives a crash. A certificate whose key a removed node holds is ordered anew and revoked.
Not here: the conversation (client.py), and what is served (shared.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from node.acme.client import AcmeChallenge, AcmeClient, AcmeError, AcmeOrder, acme_client
from node.acme.dns_records import set_record
from node.acme.jose import derive_key, key_pem
from node.acme.shared import HeldSite, SharedSites, covering
from node.config import AcmeSettings
from node.keys import write_private
from node.mesh.peer_questions import Asking
from node.transport import StreamError
from protocols.changes.secrets import SealError
from protocols.core import NodeCore
from protocols.envelope import encode
from protocols.liveness import Belief
from protocols.machine import Entropy, Now, PeerId
from protocols.records.gossip import Publish
from protocols.records.sites import (
    CHALLENGE_TTL_MS,
    SITE_RULES,
    ChallengeAnswer,
    SiteCertificate,
    challenge_key,
    seal_site,
    site_key,
)
from protocols.state.placement import rendezvous

LOOK_EVERY_S: Final = 1.0
NEXT_AFTER_MS: Final = 600_000
"""How long the next node by rendezvous leaves a name to the one before it."""

RETRY_MS: Final = 60_000
RETRY_MAX_MS: Final = 86_400_000
LIMITED_MS: Final = 3_600_000
"""At least so long nothing is asked again for a name where the authority said that it was too much."""

UNDER_WAY_MAX: Final = 2
ORDERS_PER_HOUR: Final = 30
"""Of one node, whatever is claimed: an authority allows an account some hundred in three hours."""

CONFIRM_S: Final = 10.0
PROVE_S: Final = 120.0
ISSUE_S: Final = 120.0
ORDER_S: Final = 600.0
ASK_RENEWAL_EVERY_MS: Final = 6 * 3_600_000
KEYLESS_MS: Final = 900_000
"""A node that is new to a name gets the key within seconds from whoever has it."""
SALT_BYTES: Final = 32
FILE_MAX_BYTES: Final = 8 * 1024
KEY_COMPROMISE: Final = 1
"""RFC 5280, 5.3.1: a machine outside the mesh has the key."""

_log = logging.getLogger("freehold.acme")


class NameState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node keeps of a name on disk: its order under way, and how its tries went. Times are wall ms."""

    name: str
    order: str = ""
    salt: str = ""
    failures: int = 0
    not_before_ms: int = 0
    why: str = ""


def next_try_ms(failures: int, error: AcmeError, jitter: float) -> int:
    """Return how long to wait after `failures` failed tries in a row; `jitter` is 0 to 1."""
    wait_ms = min(RETRY_MS << min(failures - 1, 16), RETRY_MAX_MS) * (1 + jitter / 2)
    least_ms = LIMITED_MS if error.rule == "rateLimited" else 0
    return int(max(wait_ms, error.retry_after_s * 1000, least_ms))


def renewal_due_ms(held: HeldSite, window: tuple[int, int] | None) -> int:
    """Return when a certificate is to be renewed: in the window, where its own digest says, or with a third of life left.

    A window that leads too near to the certificate's end is cut short: with a sixth of its life left it is renewed anyhow.
    """
    life_ms = held.ends_ms - held.begins_ms
    if window is not None:
        start, end = window
        share = int.from_bytes(hashlib.sha256(held.site.chain).digest()[:4]) / (1 << 32)
        return min(start + int((end - start) * share), held.ends_ms - life_ms // 6)
    return held.ends_ms - life_ms // 3


class Certifier:
    """This node's part. `run` goes on until it is cancelled; it never ends by a certificate that cannot be had."""

    def __init__(
        self,
        core: NodeCore,
        settings: AcmeSettings,
        shared: SharedSites,
        *,
        seed: bytes,
        folder: Path,
        entropy: Entropy,
        post: Callable[[Any], bool],
        clock: Callable[[], Now],
        asking: Asking,
        own_names: Callable[[], frozenset[str]],
    ) -> None:
        """Take the node's seed, where orders are kept, and the names for which files of this machine are served."""
        self._core, self._settings, self._shared = core, settings, shared
        self._seed, self._folder, self._entropy = seed, folder, entropy
        self._post, self._clock, self._asking, self._own_names = post, clock, asking, own_names
        self._states: dict[str, NameState] = {}
        self._since: dict[str, int] = {}
        """Since when a name's certificate is due here (mono ms)."""
        self._keyless: dict[str, int] = {}
        """Since when the only certificate of a name is sealed to others alone (mono ms)."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._windows: dict[str, tuple[int, tuple[int, int] | None]] = {}
        """When the authority was last asked about a name's renewal (mono ms), and what it said."""
        self._ordered_ms: list[int] = []
        self._revoked: set[int] = set()
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            state = _read_state(path)
            if state is not None:
                self._states[state.name] = state

    async def run(self) -> None:
        """See to the names, every second."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                if self._core.state.rules_version >= SITE_RULES:
                    self._look(group)

    def hear(self, event: Any) -> None:
        """Take one of the core's notices."""
        self._shared.hear(event)

    def proves(self, token: str) -> bool:
        """Whether this node's workers answer an authority for a token."""
        return self._shared.proves(token)

    def problems(self) -> list[str]:
        """What a person should know of names without a good certificate, each as "what; what to do"."""
        if self._core.state.rules_version < SITE_RULES:
            return [
                f"no certificates are ordered: that needs rules {SITE_RULES}; an admin: freehold mesh rules --raise"
            ]
        wall_ms, texts = self._clock().wall_ms, []
        for name in self._shared.names():
            state, held = self._states.get(name), self._held(name)
            if state is not None and state.failures and (held is None or renewal_due_ms(held, None) < wall_ms):
                minutes = max(0, state.not_before_ms - wall_ms) // 60_000
                texts.append(
                    f"no new certificate of {name}: {state.why}; it is tried again in {minutes} min; freehold dns"
                )
            elif held is not None and held.ends_ms < wall_ms:
                texts.append(f"the certificate of {name} has ended; freehold logs --contains acme")
        return texts

    def standing(self, host: str) -> tuple[HeldSite | None, str]:
        """The certificate that visitors of a host get from the mesh, and why there is no newer one ("" for no reason)."""
        for name in (host, covering(host)):
            state = self._states.get(name)
            if state is not None and state.failures:
                return self._held(host), state.why
        return self._held(host), ""

    # --- what is due --------------------------------------------------------------------------------------------------

    def _look(self, group: asyncio.TaskGroup) -> None:
        self._shared.reconcile()
        now = self._clock()
        names = self._shared.names()
        for name, nodes in names.items():
            if name in self._tasks:
                continue
            held = self._held(name)
            self._ask_window(group, name, held, now)
            if held is not None and self._reseal_due(held, nodes):
                self._start(group, name, self._reseal(held, nodes))
            elif self._due(name, held, now) and self._my_turn(name, nodes, now) and self._has_room(now):
                self._start(group, name, self._obtain(name, nodes))
        for name in self._since.keys() - names.keys():
            del self._since[name]
        self._withdraw()
        self._revoke_strangers(group, now)

    def _held(self, name: str) -> HeldSite | None:
        """The certificate that serves a name, its own or a wildcard's, if this node or the mesh has one."""
        for opens_here in (True, False):  # of what is sealed to others alone nobody here knows whether it is any good
            held_sites = (self._shared.best(text, opens_here=opens_here) for text in (name, covering(name)))
            held = [site for site in held_sites if site is not None]
            if held:
                return max(held, key=lambda one: (one.believed, one.ends_ms))
        return None

    def _due(self, name: str, held: HeldSite | None, now: Now) -> bool:
        state = self._states.get(name)
        due = (
            held is None
            or bool(state is not None and state.order)
            or now.wall_ms >= renewal_due_ms(held, self._windows.get(name, (0, None))[1])
            or bool(self._strangers(held))
            or self._is_kept_away(name, held, now)
        )
        if not due or (held is None and not {name, covering(name)}.isdisjoint(self._own_names())):
            self._since.pop(name, None)
            return False
        self._since.setdefault(name, now.mono_ms)
        return state is None or now.wall_ms >= state.not_before_ms

    def _is_kept_away(self, name: str, held: HeldSite, now: Now) -> bool:
        """Whether nobody has given this node the key of what is held, for so long that it orders for itself."""
        if self._core.node in held.nodes:
            self._keyless.pop(name, None)
            return False
        return now.mono_ms - self._keyless.setdefault(name, now.mono_ms) >= KEYLESS_MS

    def _strangers(self, held: HeldSite) -> frozenset[PeerId]:
        """Who has a certificate's key and is no node of the mesh any more."""
        return held.nodes - {node.node for node in self._core.state.nodes}

    def _my_turn(self, name: str, nodes: Sequence[PeerId], now: Now) -> bool:
        up = [node for node in nodes if self._core.liveness.belief(node) in {Belief.ALIVE, Belief.SUSPECT}]
        ranked = rendezvous(name, up)
        state = self._states.get(name)
        if self._core.node not in ranked:
            return False
        rank = 0 if state is not None and state.order else ranked.index(self._core.node)
        return now.mono_ms >= self._since[name] + rank * NEXT_AFTER_MS

    def _has_room(self, now: Now) -> bool:
        self._ordered_ms = [at_ms for at_ms in self._ordered_ms if now.mono_ms - at_ms < 3_600_000]
        return len(self._tasks) < UNDER_WAY_MAX and len(self._ordered_ms) < ORDERS_PER_HOUR

    def _start(self, group: asyncio.TaskGroup, name: str, work: Any) -> None:
        task = group.create_task(self._guard(name, work))
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name))

    async def _guard(self, name: str, work: Any) -> None:
        """Do one thing for a name and keep how it ended."""
        try:
            async with asyncio.timeout(ORDER_S):
                await work
        except (AcmeError, SealError, StreamError, TimeoutError, OSError, ValueError) as error:
            self._fail(name, error if isinstance(error, AcmeError) else AcmeError(type(error).__name__, str(error)))

    def _fail(self, name: str, error: AcmeError) -> None:
        state = self._states.get(name, NameState(name))
        failures = state.failures + 1
        wait_ms = next_try_ms(failures, error, self._entropy.uniform(0, 1))
        why = str(error)
        extra = {"event": "acme.failed", "detail": name}
        _log.error("no certificate of %s: %s; again in %d s", name, why, wait_ms // 1000, extra=extra)
        order, salt = ("", "") if error.order or failures % 3 == 0 else (state.order, state.salt)
        not_before_ms = self._clock().wall_ms + wait_ms
        self._keep(NameState(name, order, salt, failures, not_before_ms, why))

    # --- one order ----------------------------------------------------------------------------------------------------

    async def _obtain(self, name: str, nodes: Sequence[PeerId]) -> None:
        settings = self._settings
        self._ordered_ms.append(self._clock().mono_ms)
        account = derive_key(self._seed, "account", settings.directory.encode())
        async with acme_client(settings.directory, account, settings.authority) as client:
            await client.register(settings.contact)
            state, order = await self._order(client, name)
            if order.status == "pending":
                await self._show(client, name, order, nodes)
                order = await client.look(state.order)
            key = derive_key(self._seed, f"certificate {name}", bytes.fromhex(state.salt))
            if order.status == "ready":
                await client.finalize(state.order, order.finalize, name, key)
            elif order.status == "invalid":
                raise AcmeError("invalid", "the order has failed", order=True)
            chain = await client.certificate(state.order, ISSUE_S)
            self._publish(name, chain, key_pem(key), nodes)
            while not self._has_own(chain):  # noqa: ASYNC110  the core merges it within a moment, and tells many things
                await asyncio.sleep(0.05)
            self._drop(name)
            _log.info("got a certificate of %s", name, extra={"event": "acme.issued", "detail": name})

    def _has_own(self, chain: bytes) -> bool:
        """Whether a certificate of this node is a record."""
        return any(
            held_site.author == self._core.node and held_site.site.chain == chain for held_site in self._shared.all()
        )

    async def _order(self, client: AcmeClient, name: str) -> tuple[NameState, AcmeOrder]:
        """Take up the order of a life before, or begin one; what it takes to go on is on disk before anything is shown."""
        state = self._states.get(name, NameState(name))
        if state.order:
            try:
                return state, await client.look(state.order)
            except AcmeError as error:
                if error.rule in {"unreachable", "rateLimited"}:
                    raise
        url, order = await client.order(name, self._settings.profile)
        salt = self._entropy.random_bytes(SALT_BYTES).hex()
        state = msgspec.structs.replace(state, order=url, salt=salt)
        self._keep(state)
        return state, order

    async def _show(self, client: AcmeClient, name: str, order: AcmeOrder, nodes: Sequence[PeerId]) -> None:
        """Show control of everything that an order asks for."""
        for url in order.authorizations:
            asked = await client.authorization(url)
            if asked.status == "valid":
                continue
            if asked.identifier.value != name.removeprefix("*."):
                raise AcmeError("malformed", "the authority asks for another name", order=True)
            proof = self._settings.proof
            challenge = next((challenge for challenge in asked.challenges if challenge.type == proof), None)
            if challenge is None:
                offers = ", ".join(challenge.type for challenge in asked.challenges)
                raise AcmeError("proof", f"the authority takes no {proof} for {name}, but {offers}", order=True)
            await self._show_one(client, challenge, url, name, nodes)

    async def _show_one(
        self, client: AcmeClient, challenge: AcmeChallenge, url: str, name: str, nodes: Sequence[PeerId]
    ) -> None:
        authorization = client.key_authorization(challenge.token)
        if challenge.type == "dns-01":
            await set_record(self._settings, "present", name, authorization)
            try:
                await client.answer(challenge, url, PROVE_S)
            finally:
                await set_record(self._settings, "remove", name, authorization)
            return
        kind: Any = challenge.type
        answer = ChallengeAnswer(kind, name, authorization)
        self._post(Publish(challenge_key(self._core.node, answer), encode(answer), ttl_ms=CHALLENGE_TTL_MS))
        await self._confirm(answer.token, nodes)
        await client.answer(challenge, url, PROVE_S)

    async def _confirm(self, token: str, nodes: Sequence[PeerId]) -> None:
        """Wait until every node that is up answers for a token, or those that do not have had their time."""

        async def answers(node: PeerId) -> None:
            while not await self._proves(node, token):  # noqa: ASYNC110  another node is asked
                await asyncio.sleep(0.1)

        up = [node for node in nodes if self._core.liveness.belief(node) is Belief.ALIVE]
        waited = [asyncio.ensure_future(answers(node)) for node in up]
        _, late = await asyncio.wait(waited, timeout=CONFIRM_S)
        for task in waited:
            task.cancel()
        ended = await asyncio.gather(*waited, return_exceptions=True)
        failed = [node for node, how in zip(up, ended, strict=True) if how is not None]
        if late or failed:
            extra = {"event": "acme.unconfirmed", "detail": ", ".join(failed)}
            _log.warning("the authority is asked although a node does not answer for it yet", extra=extra)

    async def _proves(self, node: PeerId, token: str) -> bool:
        return self._shared.proves(token) if node == self._core.node else await self._asking.proves(node, token)

    def _publish(self, name: str, chain: bytes, key: bytes, nodes: Sequence[PeerId]) -> None:
        core, at_ms = self._core, self._clock().wall_ms
        sealed = seal_site(
            core.trust.mesh, name, chain, key, nodes=sorted({*nodes, core.node}), at_ms=at_ms, entropy=self._entropy
        )
        self._post(Publish(site_key(core.node, sealed), encode(sealed)))

    # --- keys of those that come and go -------------------------------------------------------------------------------

    def _reseal_due(self, held: HeldSite, nodes: Sequence[PeerId]) -> bool:
        """Whether a node lacks a certificate's key and this one is to give it: the orderer, or who is first after it."""
        if held.nodes.issuperset(nodes) or self._core.node not in held.nodes or self._strangers(held):
            return False
        able = [node for node in held.nodes if self._core.liveness.belief(node) is Belief.ALIVE]
        return (held.author if held.author in able else rendezvous(held.site.name, able)[0]) == self._core.node

    async def _reseal(self, held: HeldSite, nodes: Sequence[PeerId]) -> None:
        site: SiteCertificate = held.site
        self._publish(site.name, site.chain, self._shared.key_of(site), sorted({*nodes, *held.nodes}))
        await asyncio.sleep(LOOK_EVERY_S)  # until it is merged

    def _revoke_strangers(self, group: asyncio.TaskGroup, now: Now) -> None:
        """Have certificates revoked whose key a removed node has, as soon as the name has another; one node does it."""
        for held in self._shared.all():
            best, what = self._shared.best(held.site.name), f"revocation of {held.site.name}"
            gone = self._strangers(held)
            if (
                not gone
                or held.ends_ms < now.wall_ms
                or held.leaf.serial_number in self._revoked
                or what in self._tasks
            ):
                continue
            able = [node for node in held.nodes - gone if self._core.liveness.belief(node) is Belief.ALIVE]
            state = self._states.get(what)
            waits = best is None or self._strangers(best) or (state is not None and now.wall_ms < state.not_before_ms)
            if not waits and able and rendezvous(held.site.name, able)[0] == self._core.node:
                self._start(group, what, self._revoke(what, held))

    async def _revoke(self, what: str, held: HeldSite) -> None:
        """Take back what a machine outside the mesh can use; the certificate's own key may, whoever ordered it."""
        key = load_pem_private_key(self._shared.key_of(held.site), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AcmeError("malformed", "the key is none of P-256")
        async with acme_client(self._settings.directory, key, self._settings.authority) as client:
            await client.revoke(held.leaf, KEY_COMPROMISE)
        self._revoked.add(held.leaf.serial_number)
        self._drop(what)
        extra = {"event": "acme.revoked", "detail": held.site.name}
        _log.info("revoked a certificate whose key a removed node has", extra=extra)

    def _withdraw(self) -> None:
        """Take away this node's own certificates that have ended and serve no name any more."""
        wall_ms, core = self._clock().wall_ms, self._core
        for held in self._shared.all():
            if held.author == core.node and held.ends_ms < wall_ms and held is not self._shared.best(held.site.name):
                self._post(Publish(site_key(core.node, held.site), tombstone=True))

    # --- when the authority wants a renewal ---------------------------------------------------------------------------

    def _ask_window(self, group: asyncio.TaskGroup, name: str, held: HeldSite | None, now: Now) -> None:
        asked_ms, _ = self._windows.get(name, (-ASK_RENEWAL_EVERY_MS, None))
        if held is None or held.author != self._core.node or now.mono_ms - asked_ms < ASK_RENEWAL_EVERY_MS:
            return
        self._windows[name] = (now.mono_ms, self._windows.get(name, (0, None))[1])
        group.create_task(self._learn_window(name, held, now.mono_ms))

    async def _learn_window(self, name: str, held: HeldSite, at_ms: int) -> None:
        account = derive_key(self._seed, "account", self._settings.directory.encode())
        try:
            async with acme_client(self._settings.directory, account, self._settings.authority) as client:
                self._windows[name] = (at_ms, await client.renewal_window_ms(held.leaf))
        except AcmeError as error:
            _log.info("the authority does not say when to renew %s: %s", name, error, extra={"event": "acme.no-window"})

    # --- what is on disk ----------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

    def _keep(self, state: NameState) -> None:
        self._states[state.name] = state
        write_private(self._path(state.name), msgspec.json.encode(state))

    def _drop(self, name: str) -> None:
        self._states.pop(name, None)
        self._since.pop(name, None)
        self._windows.pop(name, None)
        self._path(name).unlink(missing_ok=True)


def _read_state(path: Path) -> NameState | None:
    """What is kept of a name; None for a file that is damaged, which costs no more than an order."""
    try:
        return msgspec.json.decode(path.read_bytes()[:FILE_MAX_BYTES], type=NameState)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
