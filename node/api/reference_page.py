"""The API's reference as one page: made of the OpenAPI document, with no script, font or picture from anywhere.

Everything is in the one answer, so it reads on a machine without a network. Not here: the document (operations.py).
"""

from __future__ import annotations

import html
import json
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The page's Content-Security-Policy: nothing is loaded, nothing runs, nobody frames it."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre, .path { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { background: var(--soft); padding: 0.75rem; overflow-x: auto; border-radius: 4px; }
details { border: 1px solid var(--line); border-radius: 4px; margin: 0.5rem 0; }
summary { cursor: pointer; padding: 0.5rem 0.75rem; } details > div { padding: 0 0.75rem 0.75rem; }
.method { display: inline-block; min-width: 3.5rem; font-weight: 700; } .path { font-weight: 600; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top;
  padding: 0.25rem 0.75rem 0.25rem 0; }
td, th { border-bottom: 1px solid var(--line); } nav a { margin-right: 1rem; } .soft { opacity: 0.75; }
"""


def page_of(document: dict[str, Any]) -> bytes:
    """Return the HTML of a reference: operations by tag, then the types."""
    info, groups = document["info"], {tag["name"]: tag["description"] for tag in document["tags"]}
    operations = [
        (method.upper(), path, entry) for path, item in document["paths"].items() for method, entry in item.items()
    ]
    parts = [f"<h1>{_text(info['title'])}</h1>", _paragraphs(info["description"])]
    links = "".join(f'<a href="#{_text(name)}">{_text(name)}</a>' for name in groups)
    parts.append(f'<nav>{links}<a href="#types">types</a><a href="/v1/openapi.json">openapi.json</a></nav>')
    parts.append("<h2>Who calls</h2>")
    for name, scheme in document["components"]["securitySchemes"].items():
        parts.append(f"<h3>{_text(name)}</h3>{_paragraphs(scheme['description'])}")
    for name, text in groups.items():
        parts.append(f'<h2 id="{_text(name)}">{_text(name)}</h2><p>{_text(text)}</p>')
        parts += [_operation(*operation) for operation in operations if name in operation[2]["tags"]]
    parts.append('<h2 id="types">types</h2>')
    parts += [_type(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"{meta}<title>{_text(info['title'])}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'.encode()


def _operation(method: str, path: str, one: dict[str, Any]) -> str:
    name = _text(one["operationId"])
    parts = [_paragraphs(one["description"])]
    if one["parameters"]:
        parts.append("<table><tr><th>parameter</th><th>in</th><th>what</th></tr>")
        parts += [
            f"<tr><td><code>{_text(entry['name'])}</code></td><td>{_text(entry['in'])}</td>"
            f"<td>{_text(entry['description'])}</td></tr>"
            for entry in one["parameters"]
        ]
        parts.append("</table>")
    body = one.get("requestBody", {}).get("content", {})
    parts += [_content("Body", kind, content) for kind, content in body.items()]
    for status, answer in one["responses"].items():
        if status.startswith("2"):
            contents = answer.get("content") or {"": {}}
            parts += [_content(f"Answer {status}", kind, content) for kind, content in contents.items()]
    problems = ", ".join(status for status in one["responses"] if not status.startswith("2"))
    parts.append(f'<p class="soft">Problems: {problems}</p>')
    title = f'<span class="method">{method}</span><span class="path">{_text(path)}</span> {_text(one["summary"])}'
    return f'<details id="op-{name}"><summary>{title}</summary><div>{"".join(parts)}</div></details>'


def _content(title: str, kind: str, content: dict[str, Any]) -> str:
    shown = f" {_shape(content['schema'])}" if "schema" in content else ""
    example = f"<pre>{_text(json.dumps(content['example'], indent=1))}</pre>" if "example" in content else ""
    return f'<h4>{title} <span class="soft">{_text(kind)}</span>{shown}</h4>{example}'


def _type(name: str, schema: dict[str, Any]) -> str:
    needed, rows = schema.get("required", []), []
    for field, entry in schema.get("properties", {}).items():
        must = "" if field in needed else ' <span class="soft">optional</span>'
        rows.append(f"<tr><td><code>{_text(field)}</code>{must}</td><td>{_shape(entry)}</td></tr>")
    about = _paragraphs(schema.get("description", ""))
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    return f'<h3 id="type-{_text(name)}">{_text(name)}</h3>{about}{table}'


def _shape(schema: dict[str, Any]) -> str:
    """A schema in one line, with a link where it is a named type."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f'<a href="#type-{name}">{name}</a>'
    if shapes := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_shape(shape) for shape in shapes)
    if schema.get("type") == "array":
        return f"list of {_shape(schema['items'])}" if isinstance(schema.get("items"), dict) else "list"
    if "enum" in schema:
        return " | ".join(_text(json.dumps(entry)) for entry in schema["enum"])
    more = f" {_text(schema['pattern'])}" if "pattern" in schema else ""
    base64 = " (base64)" if schema.get("contentEncoding") == "base64" else ""
    return f'<code>{_text(str(schema.get("type", "any")))}</code>{base64}<span class="soft">{more}</span>'


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_text(part)}</p>" for part in text.split("\n\n") if part)


def _text(value: str) -> str:
    return html.escape(value)
