"""What a client of this release can read of a node of the release before: no answer needs a field that older nodes do not send.

The command line reads answers by their types. A field that is added therefore gets a default, and stands in no row here.
"""

from __future__ import annotations

import msgspec
import pytest

from protocols import api_data, api_models, api_outward

REQUIRED = """
AdmissionView: name genesis
AppAnswersView: project environment app requests failed ends
AppEngineView: project environment app reason
ApprovalView: key name approved_ms expires_ms comment problem envelope
AuditView: node number at_ms caller signers lineage names verb target digest result request
AuthorityView: node name api api_pin certificate
ChangeView: id project environment request release configuration base author created_ms approvals prepared failure
  state start
DataManifest: format project environment node at_ms files
DataView: project environment node here files frozen kept_ms move
DecisionView: slot at_ms action project environment signers voters subject reason numbers
DeliveryView: id kind ended delivered attempts at_ms result
DeployedView: change release configuration author approvers break_glass applied
EnvironmentView: name selector protected nodes approvals
EvidenceView: key name kind passed by self_attested finished_ms components configurations envelope
ExchangeView: trust name roles projects environments expires_ms
ExportView: export at_ms files
ImportView: name
JobRunView: due_ms outcome detail duration_ms
JobView: app schedule next_ms
LaneJobsView: project environment jobs
LaneView: project environment sequence frozen base rollout retained data_node schedule_node routes here last_abort
ListedFile: name size_bytes sha256
LogLines: lines
MemberView: node name version standing belief connected confirmed voter draining roles labels addresses rtt_ms
  expires_ms last_seq last_serial
MeshView: mesh name slot head sequence unsafe_resets admins voters projects environments
MissingView: rule detail
MoveView: phase done_bytes total_bytes rule detail
NameView: name project environment nodes addresses certificate_until_ms certificate_by problem
NodeView: node name version mesh mesh_name standing voter speaking stalled slot peers mesh_addresses api api_pin
  ingress workers records wall_ms expires_ms quarantined refused_by doubles running disk_free_bytes wasmtime warnings
Numbers: node verdict requests errors healthy_ms smoke_runs reason
OutcomeView: outcome slot rule detail
PapersView: change signed release author required approvals evidence missing
PrincipalView: key name kind roles verbs projects environments expires_ms lineage grants problem chains
RecordView: key
RightsView: roles verbs projects environments expires_ms grants
RolloutView: id change release stage stages cohort paused assessment reason verdicts
SecretView: id project environment name version author author_name created_ms sealed_to lacking exposed in_use problem
StandbyView: node at_ms problem
StartView: change outcome slot rule detail
StoredFileView: name size_bytes
TrustView: name issuer subject claims pinned private author added_ms key roles projects environments expires_ms
  problem
UpgradeNodeView: node name version voter state why
UpgradeView: phase version order conductor why waits_for nodes
VerdictView: node verdict healthy_ms requests errors reason
VoterView: node store voter ready
WebhookSecretView: name secret
WebhookTestView: delivered result
WebhookView: name url format events projects environments private author added_ms off waiting given_up deliveries
"""
"""Of each answer, the fields without a default. A row may lose a field; a new answer may bring a row."""

_ROWS = dict(row.split(":", 1) for row in REQUIRED.replace("\n  ", " ").strip().split("\n"))
_ANSWERS = {
    name: kind
    for module in (api_models, api_data, api_outward)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and name.endswith("View")
}


def required(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind) if field.required}


@pytest.mark.parametrize("name", sorted(_ANSWERS))
def test_an_answer_needs_no_field_that_the_release_before_does_not_send(name: str) -> None:
    assert name in _ROWS, "a new answer: add its row"
    added = required(_ANSWERS[name]) - set(_ROWS[name].split())
    assert added == set(), "give it a default that says the same as its absence"


def test_what_the_first_release_said_of_a_write_is_read() -> None:
    said = dict.fromkeys(_ROWS["AuditView"].split(), "")
    said |= {"number": 1, "at_ms": 2, "signers": [], "lineage": [], "names": []}  # type: ignore[dict-item]
    assert "count" not in said
    assert msgspec.convert(said, api_models.AuditView).count == 1
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({key: said[key] for key in said if key != "verb"}, api_models.AuditView)
