"""Whether the native engine can serve an app, and what it has to know of its component to do so.

It serves HTTP components whose every import it has itself or is lent by Python (`lender.py`), of apps that may not connect
to other hosts. Its host functions rely on types that `linking.py` has checked. Not here: how the engine is run (`front.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wasmtime import component as wc

from runtime.engine.engine import engine
from runtime.engine.interface import split_import
from runtime.engine.linking import Linked
from runtime.native.lender import LentApp, LentFunction, lent_function
from runtime.sandbox.sandbox import ENTRIES, LoadedApp


@dataclass(frozen=True, slots=True)
class NativePlan:
    """An app that the engine serves: its component, what that imports, and its handler's place."""

    component: wc.Component
    imports: tuple[dict[str, Any], ...]
    export: str
    function: str
    lent: LentApp


@dataclass(frozen=True, slots=True)
class NotNative:
    """An app that Python serves, and why."""

    reason: str


def native_plan(app: LoadedApp, module: Any, serving: Callable[[str, str], None]) -> NativePlan | NotNative:
    """Decide for one app; `module` is the compiled engine, `serving` says for which request and trace a thread logs."""
    spec, linked = app.spec, app.linked
    if spec.kind != "http" or not isinstance(linked, Linked):
        return NotNative("it does not answer requests")
    if spec.allow_hosts:
        return NotNative("it may connect to other hosts")
    component: wc.Component = linked.component.component
    imports: list[dict[str, Any]] = []
    lent: list[LentFunction] = []
    for name, extern in component.type.imports(engine()).items():
        assert isinstance(extern.ty, wc.ComponentInstanceType), "linking has refused anything else"
        items = extern.ty.exports(engine())
        functions = [item for item, found in items.items() if isinstance(found.ty, wc.FuncType)]
        interface = split_import(name)[0]
        numbers: list[tuple[str, int]] = []
        for item in module.missing(interface, functions):
            ty = items[item].ty
            assert isinstance(ty, wc.FuncType), "these are names of functions"
            served = lent_function(name, item, ty)
            if served is None:
                return NotNative(f"it imports {item} of {interface}")
            numbers.append((item, len(lent)))
            lent.append(served)
        own = [item for item in functions if item not in dict(numbers)]
        resources = [item for item, found in items.items() if isinstance(found.ty, wc.ResourceType)]
        imports.append(
            {"name": name, "interface": interface, "resources": resources, "functions": own, "lent": numbers}
        )
    interface, function = ENTRIES["http"]
    exports = component.type.exports(engine())
    export = next(name for name in exports if split_import(name)[0] == interface)
    return NativePlan(component, tuple(imports), export, function, LentApp(tuple(lent), app.services, serving))
