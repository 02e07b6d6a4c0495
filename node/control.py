"""The daemon's control surface: the parts of a node that the API may read and ask, in one value.

Not here: what any part does, HTTP (api/), and how the parts are made (services.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from node.acme.certifier import Certifier
from node.concerns import Concerns, is_alone
from node.config import NodeConfig
from node.decisions.acknowledged import Acknowledged
from node.decisions.drafts import Drafts
from node.decisions.history import History
from node.decisions.outcomes import Fates
from node.decisions.start_queue import Starter
from node.decisions.undrains import Undrains
from node.feed import Feed
from node.journal.audit import Audit
from node.journal.logs import LogStore
from node.membership.admit import Enrolling
from node.membership.leave import Leaving
from node.mesh.core_requests import ChainRequests, Filing
from node.mesh.mesh import Mesh
from node.mesh.peer_addresses import PeerAddresses
from node.mesh.peer_questions import Asking
from node.oidc.trusts import Trusts
from node.serving.app_counts import AppCounts
from node.serving.data_backups import DataBackups
from node.serving.data_custody import DataCustody
from node.serving.data_moves import DataMoves
from node.serving.data_standby import DataStandby
from node.serving.deliveries import Deliveries
from node.serving.recent_answers import RecentAnswers
from node.serving.schedules import Schedules
from node.serving.secrets import Secrets
from node.serving.workloads import Workloads
from node.store.artifacts import ArtifactStore
from node.store.belongings import Belongings
from node.store.storage import Storage
from node.telemetry.telemetry import Telemetry
from node.upgrade.upgrader import Upgrader
from node.webhooks.webhooks import Webhooks
from protocols.core import NodeCore
from protocols.machine import Now
from runtime.workers.pool import WorkerPool


@dataclass(slots=True)
class ApiPlace:
    """Where people reach the API over HTTPS, "HOST:PORT", what logins pin, and its authority; empty until it listens."""

    address: str = ""
    pin: str = ""
    authority: bytes = b""
    announce: Callable[[], None] = lambda: None
    """Tells the others again where this node is."""

    def tell(self) -> None:
        """Tell the others again what this node says of itself."""
        self.announce()

    def take(self, address: str, pin: str, authority: bytes) -> None:
        """Note where the API listens now, and the certificate (DER) of what vouches for it."""
        self.address, self.pin, self.authority = address, pin, authority


@dataclass(frozen=True, slots=True)
class Control:
    """Everything a handler may use."""

    config: NodeConfig
    folder: Path
    mesh: Mesh
    storage: Storage
    artifacts: ArtifactStore
    pool: WorkerPool
    workloads: Workloads
    requests: ChainRequests
    starter: Starter
    logs: LogStore
    asking: Asking
    clock: Callable[[], Now]
    leaving: Leaving
    enrolling: Enrolling
    secrets: Secrets
    schedules: Schedules
    deliveries: Deliveries
    audit: Audit
    history: History
    fates: Fates
    concerns: Concerns
    feed: Feed
    filing: Filing
    addresses: PeerAddresses
    belongings: Belongings
    data: DataMoves
    custody: DataCustody
    backups: DataBackups
    standby: DataStandby
    app_counts: AppCounts
    recent_answers: RecentAnswers
    webhooks: Webhooks
    trusts: Trusts
    upgrader: Upgrader
    acknowledged: Acknowledged
    undrains: Undrains
    telemetry: Telemetry
    certifier: Certifier | None = None
    api_place: ApiPlace = field(default_factory=ApiPlace)
    drafts: Drafts = field(default_factory=Drafts)

    @property
    def core(self) -> NodeCore:
        """The composed machine, to read."""
        return self.mesh.core

    @property
    def alone(self) -> bool:
        """Whether no other node holds what this one holds."""
        return is_alone(self.core)

    @property
    def ingress(self) -> tuple[str, ...]:
        """Where apps are served; empty until the workers have started."""
        return self.pool.addresses

    @property
    def api(self) -> str:
        """Where people reach the API over HTTPS, "HOST:PORT"; empty if nowhere."""
        return self.api_place.address

    @property
    def api_pin(self) -> str:
        """The digest of the certificate there, in hex."""
        return self.api_place.pin
