"""The bill of materials of a build, as CycloneDX 1.6 (ECMA-424) has it: apps, the packages in each, the tools that made them.

Everything is in the build's manifest, so the same build has the same bill: no moment and no random number is in it. Pure.
"""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

from cli.project.bundle import BuildBundle, BuiltAppEntry

SBOM_TYPE = "application/vnd.cyclonedx+json"
_SPACE = uuid.UUID("6f6c6f68-6565-5f66-8000-6672656568ff")
"""Under which serial numbers are made of builds' ids (RFC 9562, version 5)."""

PYTHON_TOOL = "componentize-py"


def sbom_of(build: BuildBundle) -> dict[str, object]:
    """Return the bill of a build: one component for each app, with its packages inside, and what depends on what."""
    manifest = build.manifest
    project, source = manifest["project"], manifest["source"]
    root = f"build:{build.id}"
    apps = [_app(name, app) for name, app in sorted(manifest["apps"].items())]
    whole: dict[str, object] = {"type": "application", "bom-ref": root, "name": project["name"], "version": build.id}
    if project["description"]:
        whole["description"] = project["description"]
    if source["commit"]:
        whole["properties"] = [{"name": "freehold:commit", "value": source["commit"]}]
    tools = {name: version for app in manifest["apps"].values() for name, version in app["toolchain"].items()}
    metadata: dict[str, object] = {"component": whole}
    if tools:
        metadata["tools"] = {
            "components": [{"type": "application", "name": tool, "version": tools[tool]} for tool in sorted(tools)]
        }
    needs: list[dict[str, object]] = [{"ref": root, "dependsOn": [app["bom-ref"] for app in apps]}]
    for row in apps:
        inside = [entry["bom-ref"] for entry in row.get("components", ())]
        needs += [{"ref": row["bom-ref"], "dependsOn": inside}, *({"ref": entry} for entry in inside)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, build.id)}",
        "version": 1,
        "metadata": metadata,
        "components": apps,
        "dependencies": needs,
    }


def _app(name: str, app: BuiltAppEntry) -> dict[str, Any]:
    ecosystem = "pypi" if PYTHON_TOOL in app["toolchain"] else "npm"
    packages = [_package(name, ecosystem, *item) for item in sorted(app["packages"].items())]
    document: dict[str, Any] = {
        "type": "application",
        "bom-ref": f"app:{name}",
        "name": name,
        "version": app["component"],
        "hashes": [{"alg": "SHA-256", "content": app["component"]}],
        "properties": [{"name": "freehold:capability", "value": text} for text in app["capabilities"]],
    }
    return document | ({"components": packages} if packages else {})


def _package(app: str, ecosystem: str, name: str, version: str) -> dict[str, str]:
    """One package; the same one in two apps is two, for each is inside its own component."""
    path = "/".join(quote(part, safe="") for part in name.split("/"))
    purl = f"pkg:{ecosystem}/{path}@{quote(version, safe='')}"
    group, _, short = name.rpartition("/")
    return {
        "type": "library", "bom-ref": f"app:{app}/{purl}", "name": short, "version": version, "purl": purl,
        **({"group": group} if group else {}),
    }  # fmt: skip
