"""A change from its request to production over the HTTP API: what /docs says, a runner's token, and two libraries.

    freehold context ca > ca.pem
    export FREEHOLD_CA=ca.pem FREEHOLD_TOKEN=...      # freehold token create bot --role deployer --runner
    python change.py PROJECT ENVIRONMENT web.wasm HOST "greet visitors" -- python -m unittest

Needs `requests` and `http-message-signatures`. With a bearer token (freehold token create bot --role proposer --bearer)
and FREEHOLD_URL it ends where a token ends: at the proposal.
"""

import base64
import datetime
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time

import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms


class Key(HTTPSignatureKeyResolver):
    """One Ed25519 key: of requests, of drafts and of evidence."""

    def __init__(self, seed: bytes) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(seed)
        self.hex = self.private.public_key().public_bytes_raw().hex()

    def resolve_private_key(self, key_id: str):
        return self.private

    def resolve_public_key(self, key_id: str):
        return self.private.public_key()

    def over(self, data: bytes) -> str:
        return base64.b64encode(self.private.sign(data)).decode()


class Api:
    """Calls operations by their name in the node's own document."""

    def __init__(self, token: str) -> None:
        self.session, self.key = requests.Session(), None
        self.session.verify = os.environ["FREEHOLD_CA"]
        if token.startswith("fht1."):
            self.url, self.session.headers["Authorization"] = os.environ["FREEHOLD_URL"], f"Bearer {token}"
        else:
            said = json.loads(base64.urlsafe_b64decode(token.partition(".")[2] + "=="))
            self.url, self.pin, self.key = said["url"], said["pin"], Key(base64.b64decode(said["seed"]))
            self.signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=self.key)
        paths = self.session.get(f"{self.url}/v1/openapi.json", timeout=30).json()["paths"]
        self.known = {one["operationId"]: (method.upper(), path) for path, item in paths.items() for method, one in item.items()}

    def call(self, name: str, body=None, **parameters: str):
        method, path = self.known[name]
        octets = isinstance(body, bytes)
        data = body if octets else json.dumps(body).encode() if body is not None else b""
        request = requests.Request(method, self.url + path.format(**parameters), data=data).prepare()
        request.headers["Idempotency-Key"] = secrets.token_urlsafe(16)
        covered = ("@method", "@target-uri", "freehold-node")
        if data:
            request.headers["Content-Type"] = "application/octet-stream" if octets else "application/json"
            request.headers["Content-Digest"] = f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"
            covered += ("content-digest",)
        if self.key is None:
            request.headers.update(self.session.headers)
        else:
            request.headers["Freehold-Node"] = self.pin
            self.signer.sign(request, key_id=self.key.hex, covered_component_ids=covered, nonce=secrets.token_urlsafe(16),
                             created=datetime.datetime.now(), use_existing_digest=bool(data))
        answer = self.session.send(request, timeout=60)
        if not answer.ok:
            problem = answer.json()
            sys.exit(f"{name}: {problem['detail']}\nnext: {problem.get('next', '')}")
        return answer.json() if answer.content else None

    def sign(self, draft: dict) -> dict:
        """The body that takes a draft over: its signature, or nothing more where the node signs for a token."""
        return {"key": self.key.hex, "signature": self.key.over(base64.b64decode(draft["to_sign"]))} if self.key else {}


def attest(api: Api, mesh: str, draft: dict, component: str, command: list[str]) -> None:
    """Run the tests here and file what came out, signed, as evidence about the component and its configuration."""
    passed = subprocess.run(command).returncode == 0
    statement = json.dumps({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "web", "digest": {"sha256": component}}],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": "PASSED" if passed else "FAILED",
            "configuration": [{"name": "configuration", "digest": {"sha256": draft["configuration"]}}],
            "freehold_run": {"mesh": mesh, "kind": "test", "covers": "host", "finished_ms": time.time_ns() // 1_000_000},
        },
    }).encode()
    kind = "application/vnd.in-toto+json"
    signature = api.key.over(b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(statement), statement))
    envelope = {"payload": base64.b64encode(statement).decode(), "payloadType": kind,
                "signatures": [{"keyid": api.key.hex, "sig": signature}]}
    body = base64.b64encode(json.dumps(envelope).encode()).decode()
    api.call("publish", {"kind": "evidence", "scope": component, "body": body})
    if not passed:
        sys.exit("the tests failed; nothing was proposed")


def main() -> None:
    arguments, command = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    project, environment, path, host, request = arguments
    api = Api(os.environ["FREEHOLD_TOKEN"])
    place = {"project": project, "environment": environment}
    data = open(path, "rb").read()
    component = hashlib.sha256(data).hexdigest()
    api.call("put_artifact", data, digest=component)
    app = {"name": "web", "component": component, "routes": [host]}
    draft = api.call("draft", {"kind": "change", **place, "request": request, "apps": [app],
                               "smoke": [{"app": "web", "path": "/"}]})
    for one in draft["differences"]:
        print(f"{one['section']} {one['name']}: {one['before']} -> {one['after']}")
    if api.key:
        attest(api, api.call("mesh")["mesh"], draft, component, command)
    proposed = api.call("propose", {"digest": draft["digest"], **api.sign(draft)})
    change = proposed["change"]
    print(f"proposed {change}; missing: {', '.join(one['rule'] for one in proposed['missing']) or 'nothing'}")
    if not api.key:
        return print(proposed["next_step"])
    for wanted in ({"kind": "routes", **place, "routes": [host]}, {"kind": "start", "change": change}):
        command = api.call("draft", wanted)
        api.call("sign_draft", api.sign(command), draft=command["digest"])
    said = ""
    while True:
        lane, start = api.call("lane", **place), api.call("change", change=change)["start"]
        if lane["base"] and lane["base"]["change"] == change:
            return print(f"runs: release {lane['base']['release'][:12]}")
        rollout = lane["rollout"]
        now = f"stage {rollout['stage'] + 1} of {len(rollout['stages'])}" if rollout else f"{start['outcome']} {start['rule']}"
        if now != said:
            print(said := now, flush=True)
        if start["outcome"] == "refused" or (not rollout and start["outcome"] == "started" and lane["last_abort"]):
            sys.exit(f"it does not run: {start['detail'] or lane['last_abort']}")
        time.sleep(1)


if __name__ == "__main__":
    main()
