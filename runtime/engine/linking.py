"""Join a compiled component to the host's interfaces: once per app, every type resolved, nothing left for the call.

Each import is defined under the component's own name for it, so any patch version links. A function the host lacks, or
one whose shape differs from the interface's, is a `LinkError` that names it. Not here: running (`sandbox.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Final

import wasmtime
from wasmtime import component as wc

from runtime.engine import bindings
from runtime.engine.bindings import VAL_BYTES, RawComponent
from runtime.engine.codecs import FunctionCodecs, Lift, Lower, ResourceNames, UnsupportedTypeError, signature_of
from runtime.engine.guest import RESOURCES, Guest, Resource
from runtime.engine.interface import HostFunction, Interface, split_import
from runtime.engine.public_api import PublicComponent
from runtime.engine.shapes import shape_of

GUESTS: Final[dict[int, Guest]] = {}
"""Store context address -> guest. The one process-wide table: a callback knows only its context."""


_log = logging.getLogger(__name__)


class LinkError(Exception):
    """The component cannot run here; the text says what it asks for."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Linked:
    """A component ready to instantiate, with the signature and index of its entry function, if it has one."""

    component: RawComponent
    entry: FunctionCodecs
    entry_index: int


@dataclass(frozen=True, slots=True)
class _Import:
    """One imported interface: what stands behind each of its names."""

    resources: dict[str, type[Resource]]
    functions: dict[str, tuple[HostFunction, wc.FuncType, FunctionCodecs]]


def link(
    engine: wasmtime.Engine, component: wc.Component, interfaces: Sequence[Interface], entry: tuple[str, str]
) -> Linked | PublicComponent:
    """Resolve every import of `component` and find its export `entry` (interface, function); raises `LinkError`."""
    ty = component.type
    resources: list[tuple[wc.ResourceType, str]] = []
    imports: dict[str, _Import] = {}
    for name, extern in ty.imports(engine).items():
        instance = extern.ty
        if not isinstance(instance, wc.ComponentInstanceType):
            raise LinkError(f"the component imports {name!r}, which is no interface")
        imports[name] = _resolve(name, instance.exports(engine), find_interface(interfaces, name), resources)
    for name, extern in ty.exports(engine).items():
        instance = extern.ty
        if split_import(name)[0] == entry[0] and isinstance(instance, wc.ComponentInstanceType):
            function = instance.exports(engine).get(entry[1])
            if function is None or not isinstance(function.ty, wc.FuncType):
                raise LinkError(f"the component exports {name} without {entry[1]}")
            signature = _checked(name, entry[1], function.ty, resources)
            if not bindings.supported():
                return _by_public_api(component, imports, (name, entry[1]))
            return _by_raw_calls(engine, component, imports, (name, entry[1], signature))
    raise LinkError(f"the component does not export {entry[0]}")


def _by_raw_calls(
    engine: wasmtime.Engine,
    component: wc.Component,
    imports: Mapping[str, _Import],
    entry: tuple[str, str, FunctionCodecs],
) -> Linked:
    linker = wc.Linker(engine)
    keep: list[Any] = []
    for name, items in imports.items():
        with linker.root() as root, root.add_instance(name) as instance:
            for item, kind in items.resources.items():
                bindings.add_resource(instance, item, kind.type_id, _DESTRUCTOR)
            for item, (function, _, signature) in items.functions.items():
                callback = bindings.CALLBACK(_callback(function, signature))
                keep.append(callback)
                bindings.add_function(instance, item, callback)
    raw_component = RawComponent(component, linker, keep)
    index = raw_component.export_index(entry[0], entry[1])
    assert index is not None, "the type said so"
    return Linked(raw_component, entry[2], index)


def _by_public_api(component: wc.Component, imports: Mapping[str, _Import], entry: tuple[str, str]) -> PublicComponent:
    _warn_once()
    document: dict[str, dict[str, tuple[HostFunction, wc.FuncType] | type[Resource]]] = {}
    for name, items in imports.items():
        document[name] = {**items.resources}
        document[name].update({item: (function, ty) for item, (function, ty, _) in items.functions.items()})
    return PublicComponent(component, document, entry)


@cache
def _warn_once() -> None:
    _log.warning(
        "wasmtime %s is not one this version was tested with (%s): guests run through its public API, ten times slower",
        version("wasmtime"),
        ", ".join(sorted(bindings.KNOWN_VERSIONS)),
    )


def find_interface(interfaces: Sequence[Interface], name: str) -> Interface:
    """Return the interface that serves the import `name`; raises `LinkError`."""
    base, version = split_import(name)
    named = [interface for interface in interfaces if interface.name == base]
    for interface in named:
        if interface.serves(version):
            return interface
    if named:
        raise LinkError(f"the component imports {name}: this host serves {base}, but not version {version}")
    raise LinkError(f"the component imports {name}, which this host does not offer")


def _resolve(
    name: str, items: Mapping[str, Any], interface: Interface, resources: list[tuple[wc.ResourceType, str]]
) -> _Import:
    answer = _Import({}, {})
    for item_name, extern in items.items():
        item = extern.ty
        if isinstance(item, wc.ResourceType):
            kind = RESOURCES.get(item_name)
            if kind is None:
                raise LinkError(f"the component expects a resource {item_name} in {name}, which it does not have")
            resources.append((item, kind.wit))
            answer.resources[item_name] = kind
        elif isinstance(item, wc.FuncType):
            function = interface.find(item_name)
            if function is None:
                raise LinkError(f"the component imports {item_name} from {name}, which it does not have")
            answer.functions[item_name] = function, item, _checked(name, item_name, item, resources)
    return answer


def _checked(name: str, item: str, ty: wc.FuncType, resources: ResourceNames) -> FunctionCodecs:
    """Resolve a function's types; raises `LinkError` unless they are the interface's."""
    try:
        signature = signature_of(ty, resources)
    except UnsupportedTypeError as error:
        raise LinkError(f"{item} of {name}: {error}") from None
    expected = shape_of(name, item)
    if expected is None:
        raise LinkError(f"the component uses {item} of {name}, which it does not have")
    if signature.shape != expected:
        raise LinkError(
            f"the component has another type for {item} of {name} than that interface: {signature.shape} "
            f"instead of {expected}"
        )
    return signature


def _lower_nothing(value: Any, at: int, guest: Any) -> None:
    return None


def _callback(function: HostFunction, signature: FunctionCodecs) -> Any:
    lifts = [codec.lift for codec in signature.params]
    lower = signature.result.lower if signature.result is not None else _lower_nothing
    match lifts:
        case []:
            return _callback0(function, lower)
        case [first]:
            return _callback1(function, first, lower)
        case [first, second]:
            return _callback2(function, first, second, lower)
    return _callback_n(function, lifts, lower)


def _callback0(function: HostFunction, lower: Lower) -> Any:
    def run(_data: int, context: int, _type: int, args: int, _nargs: int, results: int, _nresults: int) -> int:
        guest = GUESTS[context]
        try:
            lower(function(guest), results, guest)
        except BaseException as error:  # must not cross the C frame; the sandbox looks at it later
            return _fail(guest, error)
        return 0

    return run


def _callback1(function: HostFunction, lift: Lift, lower: Lower) -> Any:
    def run(_data: int, context: int, _type: int, args: int, _nargs: int, results: int, _nresults: int) -> int:
        guest = GUESTS[context]
        try:
            lower(function(guest, lift(args, guest)), results, guest)
        except BaseException as error:
            return _fail(guest, error)
        return 0

    return run


def _callback2(function: HostFunction, lift: Lift, lift2: Lift, lower: Lower) -> Any:
    def run(_data: int, context: int, _type: int, args: int, _nargs: int, results: int, _nresults: int) -> int:
        guest = GUESTS[context]
        try:
            lower(function(guest, lift(args, guest), lift2(args + VAL_BYTES, guest)), results, guest)
        except BaseException as error:
            return _fail(guest, error)
        return 0

    return run


def _callback_n(function: HostFunction, lifts: list[Lift], lower: Lower) -> Any:
    places = [(lift, VAL_BYTES * n) for n, lift in enumerate(lifts)]

    def run(_data: int, context: int, _type: int, args: int, _nargs: int, results: int, _nresults: int) -> int:
        guest = GUESTS[context]
        try:
            lower(function(guest, *[lift(args + offset, guest) for lift, offset in places]), results, guest)
        except BaseException as error:
            return _fail(guest, error)
        return 0

    return run


def _fail(guest: Guest, error: BaseException) -> int:
    guest.failure = error
    return bindings.new_error(str(error) or type(error).__name__)


def _drop(_data: int, context: int, rep: int) -> int:
    guest = GUESTS[context]
    try:
        guest.drop(rep)
    except BaseException as error:
        return _fail(guest, error)
    return 0


def _tick(context: int, _data: int, delta: int, _kind: int) -> int:
    guest = GUESTS[context]
    try:
        guest.call.tick()
        bindings.set_epoch_delta(delta, 1)
    except BaseException as error:
        return _fail(guest, error)
    return 0


_DESTRUCTOR: Final = bindings.DESTRUCTOR(_drop)
ON_EPOCH: Final = bindings.EPOCH(_tick)
"""What every store does at a tick: let output go, and stop the guest if its call is over."""
