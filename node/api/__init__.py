"""The node's HTTP API under /v1: what operators, developers and agents can see and do, described by OpenAPI 3.1.

`operations.py` holds the table of operations; the document at /v1/openapi.json, the routing and the validation come
from it. Every error is a problem (RFC 9457) with a stable type and the next step; every write carries an idempotency
key and is in the audit log. The API decides nothing: commands are signed by principals and judged by the chain.
"""
