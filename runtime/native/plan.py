"""Whether the native engine can serve an app, and what it has to know of its component to do so.

It serves HTTP components whose every import it has itself or is lent by Python (`lender.py`). Its host functions rely on
types that `linking.py` has checked. Not here: how the engine is run (`front.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wasmtime import component as wc

from runtime.engine.engine import engine
from runtime.engine.interface import split_import
from runtime.engine.linking import Linked
from runtime.native.lender import LentApp, LentFunction, host_function, is_either, is_lent, splicing
from runtime.sandbox.sandbox import ENTRIES, LoadedApp


@dataclass(frozen=True, slots=True)
class NativePlan:
    """An app that the engine serves: its component, what that imports, and its handler's place."""

    component: wc.Component
    imports: tuple[dict[str, Any], ...]
    export: str
    function: str
    lent: LentApp
    splice: tuple[int, int, int] | None
    """The numbers of the functions by which bytes go from a stream to one that Python holds, or from it."""


@dataclass(frozen=True, slots=True)
class NotNative:
    """An app that Python serves, and why."""

    reason: str


def native_plan(app: LoadedApp, module: Any, serving: Callable[[str, str], None]) -> NativePlan | NotNative:
    """Decide for one app; `module` is the compiled engine, `serving` says for which request and trace a thread logs."""
    spec, linked = app.spec, app.linked
    if spec.kind != "http" or not isinstance(linked, Linked):
        return NotNative("it does not answer requests")
    component: wc.Component = linked.component.component
    answer = _imports(component, module, outward=bool(spec.allow_hosts))
    if isinstance(answer, NotNative):
        return answer
    imports, lent = answer
    splice = None
    if any(row["interface"] == "wasi:io/streams" and row["either"] for row in imports):
        splice = len(lent), len(lent) + 1, len(lent) + 2
        lent.extend(splicing())
    interface, function = ENTRIES["http"]
    exports = component.type.exports(engine())
    export = next(name for name in exports if split_import(name)[0] == interface)
    return NativePlan(component, tuple(imports), export, function, LentApp(tuple(lent), app.services, serving), splice)


def _imports(
    component: wc.Component, module: Any, *, outward: bool
) -> tuple[list[dict[str, Any]], list[LentFunction]] | NotNative:
    """Say of each import who serves its functions; `outward` for an app that may connect to other hosts."""
    lent: list[LentFunction] = []

    def numbered(name: str, items: list[str], types: dict[str, wc.FuncType]) -> list[tuple[str, int]]:
        numbers = [(item, len(lent) + n) for n, item in enumerate(items)]
        lent.extend(host_function(name, item, types[item]) for item in items)
        return numbers

    imports: list[dict[str, Any]] = []
    named = component.type.imports(engine())
    shared = outward or any(name.startswith("wasi:blobstore/") for name in named)
    for name, extern in named.items():
        assert isinstance(extern.ty, wc.ComponentInstanceType), "linking has refused anything else"
        items = extern.ty.exports(engine())
        types = {
            item: component_extern.ty
            for item, component_extern in items.items()
            if isinstance(component_extern.ty, wc.FuncType)
        }
        interface = split_import(name)[0]
        alone = [item for item in types if is_lent(name, item, outward=outward)]
        own = [item for item in types if item not in alone]
        if missing := module.missing(interface, own):
            return NotNative(f"it imports {missing[0]} of {interface}")
        either = [item for item in own if shared and is_either(name, item)]
        imports.append(
            {
                "name": name,
                "interface": interface,
                "resources": [
                    item for item, component_extern in items.items() if isinstance(component_extern.ty, wc.ResourceType)
                ],
                "functions": [item for item in own if item not in either],
                "lent": numbered(name, alone, types),
                "either": numbered(name, either, types),
            }
        )
    return imports, lent
