"""Whether the native engine can serve an app, and what it has to know of its component to do so.

It serves HTTP components whose every import it has itself, of apps that may not connect to other hosts. Its host functions
rely on types that `linking.py` has checked. Not here: how the engine is run (`front.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wasmtime import component as wc

from runtime.engine.engine import engine
from runtime.engine.interface import split_import
from runtime.engine.linking import Linked
from runtime.sandbox.sandbox import ENTRIES, LoadedApp


@dataclass(frozen=True, slots=True)
class NativePlan:
    """An app that the engine serves: its component, what that imports, and its handler's place."""

    component: wc.Component
    imports: tuple[dict[str, Any], ...]
    export: str
    function: str


@dataclass(frozen=True, slots=True)
class NotNative:
    """An app that Python serves, and why."""

    reason: str


def native_plan(app: LoadedApp, module: Any) -> NativePlan | NotNative:
    """Decide for one app; `module` is the compiled engine."""
    spec, linked = app.spec, app.linked
    if spec.kind != "http" or not isinstance(linked, Linked):
        return NotNative("it does not answer requests")
    if spec.allow_hosts:
        return NotNative("it may connect to other hosts")
    component: wc.Component = linked.component.component
    imports: list[dict[str, Any]] = []
    for name, extern in component.type.imports(engine()).items():
        assert isinstance(extern.ty, wc.ComponentInstanceType), "linking has refused anything else"
        items = extern.ty.exports(engine())
        functions = [item for item, found in items.items() if isinstance(found.ty, wc.FuncType)]
        interface = split_import(name)[0]
        if missing := module.missing(interface, functions):
            return NotNative(f"it imports {missing[0]} of {interface}")
        resources = [item for item, found in items.items() if isinstance(found.ty, wc.ResourceType)]
        imports.append({"name": name, "interface": interface, "resources": resources, "functions": functions})
    interface, function = ENTRIES["http"]
    exports = component.type.exports(engine())
    export = next(name for name in exports if split_import(name)[0] == interface)
    return NativePlan(component, tuple(imports), export, function)
