"""Who pays for each named limit: at whose cost it is met, so that nobody else waits or loses anything when it is.

By file, and by name where the limits of a file have different payers or one of them is shared. A file with limits that
stands nowhere here fails a test, as does a limit of a file whose limits are listed one by one.
"""

from __future__ import annotations

SENDER = "whoever sent it: refused, before it is buffered whole"
AUTHOR = "whoever wrote it: refused"
PEER = "the peer that it came from"
ASKER = "the node that asks: it asks for less, or again"
MEMBER = "each member has its own"
ADMIN = "the mesh: an admin decides each"
APP = "the app"
VISITOR = "the visitor whose connection it is"
STRANGERS = "strangers, between them"
ADDRESS = "the address"
PRINCIPAL = "the principal"
KEY = "the key"
PROJECT = "the project"
NODE = "this node: its own work, which nobody else can cause more of"
OLDEST = "the oldest entry gives way and is found out again: nobody waits"
OPERATOR = "this node's operator"

Payers = str | dict[str, str]

PAYERS: dict[str, Payers] = {
    "cli": "the person whose command it is",
    "protocols/api_models.py": AUTHOR,
    "protocols/api_outward.py": AUTHOR,
    "protocols/api_upkeep.py": ADMIN,
    "protocols/artifacts.py": {
        "ARTIFACT_MAX_BYTES": AUTHOR, "CHUNKS_MAX": AUTHOR, "WANTS_MAX": NODE, "IN_FLIGHT_MAX": NODE, "HOLDERS_MAX": OLDEST,
        "LIES_MAX": OLDEST, "ASK_MAX_BYTES": PEER, "ANSWER_MAX_BYTES": PEER,
    },
    "protocols/chain/acceptor.py": {"ACCEPTED_MAX_BYTES": PEER, "FLOORS_MAX": OLDEST},
    "protocols/chain/ballots.py": PEER,
    "protocols/chain/boot_read.py": NODE,
    "protocols/chain/chain.py": OLDEST,
    "protocols/chain/clients.py": {"REFUSED_MAX": OLDEST, "PENDING_MAX": "whoever asks for one decision more: refused"},
    "protocols/chain/context.py": OLDEST,
    "protocols/chain/decision.py": AUTHOR,
    "protocols/chain/follower.py": OLDEST,
    "protocols/chain/grounds.py": OLDEST,
    "protocols/chain/growth.py": OLDEST,
    "protocols/chain/ledger.py": {
        "ENTRY_MAX_BYTES": PEER, "DECISION_MAX_BYTES": AUTHOR, "STATE_MAX_BYTES": "whoever asks for more: refused",
        "DECIDED_COMMANDS_MAX": OLDEST,
    },
    "protocols/chain/messages.py": PEER,
    "protocols/chain/pacing.py": NODE,
    "protocols/chain/reads.py": "whoever asks for one reading more: refused",
    "protocols/chain/witness.py": OLDEST,
    "protocols/changes/approvals.py": AUTHOR,
    "protocols/changes/change.py": AUTHOR,
    "protocols/changes/demands.py": ADMIN,
    "protocols/changes/effective.py": AUTHOR,
    "protocols/changes/evidence.py": AUTHOR,
    "protocols/changes/mandates.py": AUTHOR,
    "protocols/changes/networks.py": AUTHOR,
    "protocols/changes/passkeys.py": AUTHOR,
    "protocols/changes/secrets.py": AUTHOR,
    "protocols/changes/statements.py": PEER,
    "protocols/envelope.py": SENDER,
    "protocols/keys.py": OLDEST,
    "protocols/libp2p/connection.py": {"PROBATION_MAX_BYTES": STRANGERS, "SILENCE_MAX_MS": PEER},
    "protocols/libp2p/identify.py": PEER,
    "protocols/libp2p/multiaddr.py": SENDER,
    "protocols/libp2p/multistream.py": PEER,
    "protocols/libp2p/noise_channel.py": PEER,
    "protocols/libp2p/noise_payload.py": PEER,
    "protocols/libp2p/protobuf.py": SENDER,
    "protocols/libp2p/upgrade.py": PEER,
    "protocols/libp2p/varint.py": SENDER,
    "protocols/libp2p/yamux.py": PEER,
    "protocols/libp2p/yamux_frames.py": PEER,
    "protocols/libp2p/yamux_stream.py": PEER,
    "protocols/liveness.py": {"INCARNATION_MAX": PEER, "PINGS_PENDING_MAX": PEER, "OPENED_MAX": OLDEST},
    "protocols/records/audit.py": {
        "ENTRY_MAX_BYTES": "the principal that the entry is about", "TEXT_MAX": "the principal that the entry is about",
        "FAULTS_MAX": "the node whose log has the gaps",
    },
    "protocols/records/floors.py": MEMBER,
    "protocols/records/gossip.py": {
        "ANNOUNCED_MAX": PEER, "WANTED_MAX": "nobody: comparing sets brings the rest",
        "GATHERED_MAX": "nobody: comparing sets brings the rest", "SOURCES_MAX": OLDEST, "AUTHORS_TRACKED_MAX": OLDEST,
    },
    "protocols/records/hlc.py": AUTHOR,
    "protocols/records/key_table.py": AUTHOR,
    "protocols/records/papers.py": AUTHOR,
    "protocols/records/quotas.py": OLDEST,
    "protocols/records/record.py": AUTHOR,
    "protocols/records/sites.py": AUTHOR,
    "protocols/records/sync.py": PEER,
    "protocols/rollout/agent.py": OLDEST,
    "protocols/rollout/conductor.py": {
        "CHANGES_MAX": OLDEST, "REPEATED_MAX": PEER, "HELD_MAX_BYTES": PEER, "OPENED_MAX": OLDEST,
    },
    "protocols/rollout/dossiers.py": {
        "GRANTS_SHOWN_MAX": "the change's author: it needs fewer people", "WAITING_MAX": OLDEST,
    },
    "protocols/rollout/health.py": APP,
    "protocols/state/analysis.py": "a node that says it serves more than its neighbours",
    "protocols/state/apply.py": "whoever asks for more: refused",
    "protocols/state/commands.py": AUTHOR,
    "protocols/state/exhibits.py": AUTHOR,
    "protocols/state/gate.py": AUTHOR,
    "protocols/state/governance.py": AUTHOR,
    "protocols/state/model.py": {
        "NODES_MAX": ADMIN, "PROJECTS_MAX": ADMIN, "ENVIRONMENTS_MAX": ADMIN, "LANES_MAX": ADMIN, "LABELS_MAX": ADMIN,
        "OWNERS_MAX": ADMIN, "ROUTES_TOTAL_MAX": "whoever claims one more: refused",
        "RETAINED_MAX": "the project's oldest release", "RECENT_IDS_MAX": OLDEST,
        "WITHDRAWN_MAX": "the project, in that environment",
    },
    "protocols/trust/certificates.py": ADMIN,
    "protocols/trust/genesis.py": ADMIN,
    "protocols/trust/acknowledgements.py": AUTHOR,
    "protocols/trust/grants.py": "whoever gives the grant: refused",
    "protocols/trust/hello.py": {
        "HELLO_BYTES_MAX": STRANGERS, "VERSION_MAX": PEER, "CHALLENGES_MAX": PEER, "PEERS_MAX": STRANGERS, "NONCES_MAX": PEER,
    },
    "protocols/trust/invites.py": ADMIN,
    "protocols/trust/revocations.py": {
        "REVOCATION_MAX_BYTES": AUTHOR, "REASON_CHARACTERS_MAX": AUTHOR, "KEPT_MAX": "the administrator who was revoked",
    },
    "protocols/trust/store.py": {
        "UNPROVEN_MAX": OLDEST, "CERTIFICATES_PER_NODE_MAX": MEMBER, "CREDENTIALS_MAX": PEER,
    },
    "protocols/trust/upgrades.py": ADMIN,
    "runtime/call.py": APP,
    "runtime/engine/engine.py": APP,
    "runtime/engine/guest.py": APP,
    "runtime/engine/instance.py": APP,
    "runtime/engine/wasm_binary.py": AUTHOR,
    "runtime/exchange.py": "the app or the visitor, whichever is slower: the other waits",
    "runtime/ingress/certificates.py": OPERATOR,
    "runtime/ingress/chunked.py": VISITOR,
    "runtime/ingress/connection.py": VISITOR,
    "runtime/ingress/delivery.py": APP,
    "runtime/ingress/dispatch.py": "apps, each with its share (AppLimits.concurrency); beyond it its own visitors wait",
    "runtime/ingress/forwarding.py": VISITOR,
    "runtime/ingress/front.py": VISITOR,
    "runtime/ingress/load_table.py": OPERATOR,
    "runtime/ingress/proofs.py": STRANGERS,
    "runtime/ingress/request_head.py": VISITOR,
    "runtime/ingress/routing.py": PROJECT,
    "runtime/ingress/socket_events.py": APP,
    "runtime/ingress/topics.py": APP,
    "runtime/ingress/websocket.py": {
        "MESSAGE_MAX_BYTES": VISITOR, "WAITING_MAX": VISITOR, "WAITING_MAX_BYTES": VISITOR, "UNSENT_MAX_BYTES": VISITOR,
        "SOCKETS_MAX": "visitors with WebSockets: requests keep the other half", "TOPICS_MAX": APP, "SILENT_MAX_S": VISITOR,
        "CLOSING_MAX_S": VISITOR,
    },
    "runtime/messages.py": NODE,
    "runtime/native/front.py": VISITOR,
    "runtime/outbound/client.py": APP,
    "runtime/outbound/lookups.py": APP,
    "runtime/outbound/response_reader.py": APP,
    "runtime/sandbox/adapter.py": APP,
    "runtime/sandbox/code_size.py": PROJECT,
    "runtime/sandbox/compile_cache.py": {"CACHE_MAX_BYTES": OLDEST, "OUTPUT_MAX_BYTES": PROJECT},
    "runtime/sandbox/compile_turns.py": {
        "COMPILERS_MAX": "projects: each has one at a time, and waits behind the others'", "CPU_MAX_S": PROJECT,
    },
    "runtime/sandbox/preview1.py": APP,
    "runtime/services/declared_providers.py": OPERATOR,
    "runtime/services/file_blobs.py": APP,
    "runtime/services/freeze.py": NODE,
    "runtime/services/log_sink.py": {"LINE_MAX_BYTES": APP, "BUFFER_MAX_BYTES": "apps, by their share of log lines"},
    "runtime/services/redis_keyvalue.py": PROJECT,
    "runtime/services/sql_rules.py": APP,
    "runtime/services/sqlite_file.py": APP,
    "runtime/services/sqlite_keyvalue.py": APP,
    "runtime/services/sqlite_queue.py": APP,
    "runtime/services/sqlite_sql.py": "apps of one worker together: the query that asks for more fails",
    "runtime/spec.py": APP,
    "runtime/wasi/blobs.py": APP,
    "runtime/wasi/http_body.py": APP,
    "runtime/wasi/http_fields.py": APP,
    "runtime/wasi/poll.py": APP,
    "runtime/wasi/random.py": APP,
    "runtime/wasi/services.py": APP,
    "runtime/wasi/sql.py": APP,
    "runtime/wasi/streams.py": APP,
    "runtime/workers/link.py": NODE,
    "runtime/workers/pool.py": OPERATOR,
    "runtime/workers/worker.py": {"LOG_BATCH_MAX_BYTES": NODE, "JOBS_MAX": "projects with jobs: one more waits"},
    "node/acme/authorities.py": AUTHOR,
    "node/acme/certifier.py": OPERATOR,
    "node/acme/client.py": OPERATOR,
    "node/acme/dns_records.py": OPERATOR,
    "node/acme/shared.py": OLDEST,
    "node/api/callers/authority.py": OPERATOR,
    "node/api/callers/callers.py": {"FAILURES_MAX": ADDRESS, "ADDRESSES_MAX": OLDEST},
    "node/api/callers/http_signatures.py": SENDER,
    "node/api/callers/nonces.py": {
        "NONCES_PER_KEY_MAX": KEY, "NONCES_MAX": "keys above their reserve: they wait, and others do not",
    },
    "node/api/data.py": ASKER,
    "node/api/handlers.py": SENDER,
    "node/api/listening.py": {
        "STRANGERS_MAX": STRANGERS, "HANDSHAKES_MAX": STRANGERS, "HANDSHAKES_PER_ADDRESS_MAX": ADDRESS,
    },
    "node/api/mcp.py": PRINCIPAL,
    "node/api/operations.py": PRINCIPAL,
    "node/api/papers/auditing.py": PRINCIPAL,
    "node/api/papers/draft_models.py": AUTHOR,
    "node/api/papers/drafts.py": AUTHOR,
    "node/api/papers/paper_checks.py": AUTHOR,
    "node/api/reports/upkeep_metrics.py": OPERATOR,
    "node/api/reports/following.py": PRINCIPAL,
    "node/api/reports/metrics.py": OPERATOR,
    "node/api/reports/views.py": PRINCIPAL,
    "node/api/server.py": {"HEADER_MAX_BYTES": SENDER, "WRITES_REMEMBERED_MAX": OLDEST},
    "node/concerns.py": MEMBER,
    "node/config.py": OPERATOR,
    "node/decisions/drafts.py": {
        "DRAFTS_MAX": OLDEST, "DRAFTS_PER_PRINCIPAL_MAX": PRINCIPAL, "IMPORTS_KEPT_MAX": OLDEST,
    },
    "node/decisions/history.py": {"REASON_MAX": AUTHOR, "SLOTS_SEARCHED_MAX": PRINCIPAL},
    "node/decisions/start_queue.py": {
        "AGAIN_MAX_MS": NODE, "FILE_MAX_BYTES": NODE, "STARTS_MAX": "whoever starts one more: refused (429)",
    },
    "node/decisions/undrains.py": ADMIN,
    "node/feed.py": {
        "WATCHERS_MAX": "principals: each has a share of followers, and one more of its own is refused",
        "WATCHER_EVENTS_MAX": "the follower that reads slowly", "RECENT_MAX": OLDEST,
    },
    "node/journal/audit.py": {"WAITING_MAX": NODE, "BACKLOG_MAX": NODE},
    "node/journal/audit_shares.py": {"WINDOW_MAX_MS": PRINCIPAL, "WINDOWS_MAX": OLDEST, "RULES_TOLD_MAX": PRINCIPAL},
    "node/journal/caused_lines.py": {"LINES_MAX": PRINCIPAL, "PAYERS_MAX": OLDEST},
    "node/journal/logs.py": {
        "LINE_MAX_BYTES": AUTHOR,
        "FOLLOWERS_MAX": "principals: each has a share of followers, and one more of its own is refused",
        "FOLLOWER_LINES_MAX": "the follower that reads slowly",
    },
    "node/membership/backup.py": OPERATOR,
    "node/membership/found.py": OPERATOR,
    "node/membership/pending_papers.py": OPERATOR,
    "node/mesh/artifact_fetcher.py": {
        "UNWRITTEN_MAX": NODE, "READS_MAX": "peers that fetch: one more waits", "ASKS_MAX": PEER, "STREAMS_PER_PEER_MAX": PEER,
        "LISTS_MAX": OLDEST,
    },
    "node/mesh/core_requests.py": "whoever asks for one decision more: refused",
    "node/mesh/mesh.py": {
        "MALFORMED_MAX": PEER, "REJECTS_SAID_MAX": OLDEST, "REJECTED_PEERS_MAX": OLDEST, "DETAIL_KEPT_MAX": PEER,
    },
    "node/mesh/peer_addresses.py": MEMBER,
    "node/mesh/peer_questions.py": {
        "ASK_MAX_BYTES": PEER, "BLOCK_MAX_BYTES": PEER, "LINES_MAX": ASKER, "ANSWER_MAX_BYTES": ASKER,
        "ANSWERS_MAX": "peers that ask: each has its share of them",
    },
    "node/mesh/presence.py": MEMBER,
    "node/mesh/pump.py": {"INBOX_MAX": "peers: their streams wait", "BATCH_MAX": NODE},
    "node/mesh/request_relay.py": {
        "FORWARDS_MAX": "visitors of apps on other nodes: one more is answered 503", "LINE_MAX_BYTES": PEER,
    },
    "node/mesh/topic_relay.py": PEER,
    "node/oidc/issuers.py": "the issuer: it is believed no more until it answers less",
    "node/oidc/tokens.py": SENDER,
    "node/oidc/trusts.py": OPERATOR,
    "node/reaching.py": "the answering server",
    "node/serving/data_custody.py": {
        "EXPORTS_MAX": "peers that take copies: one more is told to wait", "IMPORTS_MAX": NODE, "NONCES_MAX": OLDEST,
    },
    "node/serving/migrations.py": PROJECT,
    "node/serving/data_moves.py": {"WANTED_MAX": ASKER, "MOVES_MAX": ADMIN},
    "node/serving/deliveries.py": APP,
    "node/serving/job_history.py": {"JOBS_MAX": OLDEST, "DETAIL_MAX_CHARS": APP},
    "node/serving/releases.py": APP,
    "node/serving/schedules.py": {"MISSED_MAX": NODE, "SPANS_MAX": OLDEST},
    "node/serving/smoke_bench.py": APP,
    "node/serving/workloads.py": {
        "PREPARE_AGAIN_MAX_S": NODE, "PREPARE_WAITING_MAX": "changes that may not start now give way",
        "PREPARED_KEPT_MAX": OLDEST, "FAILURES_MAX": OLDEST, "ORDERS_MAX": NODE,
    },
    "node/store/artifacts.py": "artifacts that nothing names, the least recently used first",
    "node/store/belongings.py": {
        "UPLOADS_PER_PRINCIPAL_MAX": "the principal that uploads", "PRINCIPALS_MAX": OLDEST, "RELEASES_MAX": OLDEST,
    },
    "node/store/data_copy.py": PROJECT,
    "node/store/data_folders.py": PROJECT,
    "node/store/data_staging.py": PROJECT,
    "node/store/migrated.py": {"MIGRATED_MAX": OLDEST, "MIGRATED_MAX_BYTES": PROJECT},
    "node/store/sealed_copy.py": OPERATOR,
    "node/transport/channel.py": PEER,
    "node/transport/link.py": PEER,
    "node/transport/settings.py": {
        "HALF_OPEN_MAX": STRANGERS, "HALF_OPEN_PER_ADDRESS_MAX": ADDRESS, "ADDRESSES_MAX": PEER, "BACKOFF_MAX_S": NODE,
    },
    "node/transport/stream.py": NODE,
    "node/transport/transport.py": STRANGERS,
    "node/telemetry/exporter.py": "the collector that does not take them: the oldest are dropped, and counted",
    "node/telemetry/otlp.py": AUTHOR,
    "node/upgrade/launcher.py": OPERATOR,
    "node/upgrade/releases_here.py": ADMIN,
    "node/upgrade/upgrader.py": OPERATOR,
    "node/webhooks/formats.py": OPERATOR,
    "node/webhooks/model.py": {"HOOKS_MAX": OPERATOR, "PENDING_MAX": "the webhook whose receiver does not answer"},
    "node/webhooks/occasions.py": {"REQUEST_MAX_CHARS": AUTHOR, "CHANGES_LOOKED_AT_MAX": NODE},
    "protocols/records/quotas.py:RecordLimits": {
        "records_max": "nobody: the shares below keep it from filling up", "urgent_extra": "nobody: certificates find room",
        "reserve_max": "nobody: room for each node's audit and each admin", "node_audit_max": MEMBER, "node_words_max": MEMBER,
        "node_trust_max": MEMBER, "node_moments_max": MEMBER, "node_bytes_max": MEMBER,
        "principal_papers_max": "the principal behind the key that signed", "principal_bytes_max": "the same principal",
        "project_papers_max": PROJECT, "project_bytes_max": PROJECT,
        "delegations_max": "the principal whose right they rest on", "delegations_bytes_max": "the same principal",
        "ephemeral_max": "members, by node_moments_max", "parked_max": "members, by node_parked_max",
        "node_parked_max": "the node whose clock is ahead", "silent_max_ms": MEMBER,
    },
    "runtime/messages.py:AppLimits": {
        "queue_max": "visitors of that app: one more is answered 503", "request_body_max_bytes": VISITOR,
    },
    "runtime/ingress/settings.py:IngressSettings": {
        "connections_max": "visitors, between them: one more waits to be accepted", "fields_max": VISITOR,
        "fields_max_bytes": VISITOR, "target_max_bytes": VISITOR,
    },
    "runtime/spec.py:AppSpec": {
        "memory_max_bytes": APP, "table_elements_max": APP, "instance_uses_max": APP, "outbound_max": APP,
        "log_line_max_bytes": APP, "log_call_max_bytes": APP, "response_fields_max": APP, "response_fields_max_bytes": APP,
    },
}  # fmt: skip


def payer_of(place: str, name: str) -> str:
    """Return who pays for a limit; `place` is its file. Raises KeyError if nobody does."""
    payers = PAYERS["cli"] if place.startswith("cli/") else PAYERS[place]
    return payers if isinstance(payers, str) else payers[name]
