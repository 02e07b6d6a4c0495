"""The slower road, for a wasmtime release whose structures `bindings.py` does not know: the package's public API only.

Everything an app can observe is the same except that a call costs ten times as much, a guest that computes is stopped
by its deadline alone (not by a disconnect), and a flush of a guest that computes waits until it stops. The package
carries host exceptions in one variable for all threads; so ours stay on their guest and only texts go through it.
Not here: the interfaces, which do not know which road they are called by.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import wasmtime
from wasmtime import component as wc

from runtime.engine.bindings import WasmError
from runtime.engine.codecs import Err, Ok
from runtime.engine.engine import TICK_S, engine
from runtime.engine.guest import Guest, Resource
from runtime.engine.interface import HostFunction

_SCALARS: Final = (
    wc.Bool, wc.S8, wc.U8, wc.S16, wc.U16, wc.S32, wc.U32, wc.S64, wc.U64, wc.F32, wc.F64, wc.Char, wc.String,
    wc.EnumType,
)  # fmt: skip
_RESOURCE_CLASSES: Final = frozenset({wc.ResourceAny, wc.ResourceHost})
_contexts: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Conversion:
    """Between the package's Python values and ours, for one type; `classes` are the package's own, as it tells cases.

    `ours` and `theirs` take (value, store, guest).
    """

    ours: Callable[[Any, Any, Guest], Any]
    theirs: Callable[[Any, Any, Guest], Any]
    classes: frozenset[type]


def conversion_for(ty: Any) -> Conversion:
    """Return the conversion of a type the host serves."""
    match ty:
        case wc.ListType():
            return _list(ty)
        case wc.TupleType():
            return _tuple([conversion_for(element) for element in ty.elements])
        case wc.RecordType():
            return _record([(name, conversion_for(field)) for name, field in ty.fields])
        case wc.VariantType():
            return _variant([(name, _maybe(case)) for name, case in ty.cases])
        case wc.OptionType():
            return _option(_Cases([("none", None), ("some", conversion_for(ty.payload))]))
        case wc.ResultType():
            return _result(_Cases([("ok", _maybe(ty.ok)), ("err", _maybe(ty.err))]))
        case wc.FlagsType():
            return Conversion(lambda v, s, g: frozenset(v), lambda v, s, g: set(v), frozenset({set}))
        case wc.OwnType():
            return Conversion(
                lambda v, s, g: g.take(v.to_host(s).rep),
                lambda v, s, g: wc.ResourceHost.own(*g.give(v)),
                _RESOURCE_CLASSES,
            )
        case wc.BorrowType():
            return Conversion(lambda v, s, g: g.borrow(v.to_host(s).rep), _never, _RESOURCE_CLASSES)
    assert isinstance(ty, _SCALARS), "linking refused every other type"
    classes: set[type] = set()
    ty.add_classes(classes)
    return Conversion(_same, _same, frozenset(classes))


def _maybe(ty: Any) -> Conversion | None:
    return conversion_for(ty) if ty is not None else None


def _same(value: Any, store: Any, guest: Guest) -> Any:
    return value


def _never(value: Any, store: Any, guest: Guest) -> Any:
    raise AssertionError("no export of ours takes a borrow")


def _list(ty: wc.ListType) -> Conversion:
    element = ty.element
    if isinstance(element, wc.U8):
        return Conversion(_same, _same, frozenset({bytes}))
    conversion = conversion_for(element)
    return Conversion(
        lambda v, s, g: [conversion.ours(item, s, g) for item in v],
        lambda v, s, g: [conversion.theirs(item, s, g) for item in v],
        frozenset({list}),
    )


def _tuple(elements: list[Conversion]) -> Conversion:
    return Conversion(
        lambda v, s, g: tuple(conversion.ours(item, s, g) for conversion, item in zip(elements, v, strict=True)),
        lambda v, s, g: tuple(conversion.theirs(item, s, g) for conversion, item in zip(elements, v, strict=True)),
        frozenset({tuple}),
    )


def _record(fields: list[tuple[str, Conversion]]) -> Conversion:
    def theirs(value: Any, store: Any, guest: Guest) -> wc.Record:
        record = wc.Record()
        for (name, conversion), item in zip(fields, value, strict=True):
            setattr(record, name, conversion.theirs(item, store, guest))
        return record

    return Conversion(
        lambda v, s, g: tuple(conversion.ours(getattr(v, name), s, g) for name, conversion in fields),
        theirs,
        frozenset({wc.Record}),
    )


class _Cases:
    """The package's reading of a variant: a `Variant` when the cases' classes overlap, else the bare payload."""

    def __init__(self, cases: list[tuple[str, Conversion | None]]) -> None:
        self._cases = dict(cases)
        seen: set[type] = set()
        self._tagged = False
        for case in self._cases.values():
            classes = case.classes if case is not None else frozenset({object})
            self._tagged = self._tagged or bool(classes & seen)
            seen |= classes
        self.classes = frozenset({wc.Variant}) if self._tagged else frozenset(seen)

    def ours(self, value: Any, store: Any, guest: Guest) -> tuple[str, Any]:
        """Return the case and our payload."""
        if self._tagged:
            case = self._cases[value.tag]
            return value.tag, case.ours(value.payload, store, guest) if case is not None else None
        for name, case in self._cases.items():
            if case is None:
                if value is None:
                    return name, None
            elif isinstance(value, tuple(case.classes)):
                return name, case.ours(value, store, guest)
        raise TypeError("a value of no case")

    def theirs(self, name: str, payload: Any, store: Any, guest: Guest) -> Any:
        """Return what the package expects for a case."""
        case = self._cases[name]
        value = case.theirs(payload, store, guest) if case is not None else None
        return wc.Variant(name, value) if self._tagged else value


def _variant(cases: list[tuple[str, Conversion | None]]) -> Conversion:
    all_cases = _Cases(cases)
    return Conversion(all_cases.ours, lambda v, s, g: all_cases.theirs(v[0], v[1], s, g), all_cases.classes)


def _option(cases: _Cases) -> Conversion:
    return Conversion(
        lambda v, s, g: cases.ours(v, s, g)[1],
        lambda v, s, g: cases.theirs("none" if v is None else "some", v, s, g),
        cases.classes,
    )


def _result(cases: _Cases) -> Conversion:
    def ours(value: Any, store: Any, guest: Guest) -> Ok | Err:
        name, payload = cases.ours(value, store, guest)
        return Ok(payload) if name == "ok" else Err(payload)

    def theirs(value: Any, store: Any, guest: Guest) -> Any:
        if isinstance(value, Err):
            return cases.theirs("err", value.value, store, guest)
        return cases.theirs("ok", value.value if isinstance(value, Ok) else value, store, guest)

    return Conversion(ours, theirs, cases.classes)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class PublicComponent:
    """A component, its checked imports (interface -> function -> host function and type), and its entry."""

    component: wc.Component
    imports: Mapping[str, Mapping[str, tuple[HostFunction, wc.FuncType] | type[Resource]]]
    entry: tuple[str, str]


class PublicInstance:
    """An instance entered through the public API; its linker is its own, since a host function must know its guest."""

    def __init__(self, component: PublicComponent, guest: Guest, counts: tuple[int, int, int]) -> None:
        spec = guest.services.spec
        self._guest = guest
        guest.context = next(_contexts)
        self._store = wasmtime.Store(engine())
        instances, tables, memories = counts
        self._store.set_limits(spec.memory_max_bytes, spec.table_elements_max, instances, tables, memories)
        self._arm()
        linker = wc.Linker(engine())
        for name, items in component.imports.items():
            with linker.root() as root, root.add_instance(name) as target:
                for item_name, item in items.items():
                    if isinstance(item, tuple):
                        target.add_func(item_name, _bridge(guest, *item))
                    else:
                        target.add_resource(item_name, wc.ResourceType.host(item.type_id), self._drop)
        try:
            instance = linker.instantiate(self._store, component.component)
        except wasmtime.WasmtimeError as error:
            self.close()
            raise WasmError(str(error)) from None
        parent = instance.get_export_index(self._store, component.entry[0])
        index = instance.get_export_index(self._store, component.entry[1], parent)
        function = instance.get_func(self._store, index) if index is not None else None
        assert function is not None, "linking found the entry"
        self._function = function

    def handle(self, request: Resource, outparam: Resource) -> None:
        """Call with both handles."""
        self._call(wc.ResourceHost.own(*self._guest.give(request)), wc.ResourceHost.own(*self._guest.give(outparam)))

    def run(self) -> Ok | Err:
        """Call and convert the result."""
        result = self._function.type(self._store).result
        value = self._call()
        converted: Ok | Err = conversion_for(result).ours(value, self._store, self._guest)
        return converted

    def close(self) -> None:
        """Free the store."""
        self._store.close()

    def _arm(self) -> None:
        remaining_s = min(max(self._guest.call.deadline_s - time.monotonic(), 0.0), 1e6)
        self._store.set_epoch_deadline(int(remaining_s / TICK_S) + 1)

    def _call(self, *arguments: Any) -> Any:
        self._arm()
        try:
            return self._function(self._store, *arguments)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise WasmError(str(error)) from None

    def _drop(self, store: Any, rep: int) -> None:
        try:
            self._guest.drop(rep)
        except BaseException as error:
            raise _kept(self._guest, error) from None


def _bridge(guest: Guest, function: HostFunction, ty: wc.FuncType) -> Callable[..., Any]:
    parameters: Sequence[Conversion] = [conversion_for(parameter) for _, parameter in ty.params]
    result = _maybe(ty.result)

    def call(store: Any, *arguments: Any) -> Any:
        try:
            guest.call.check()
            ours = [parameter.ours(value, store, guest) for parameter, value in zip(parameters, arguments, strict=True)]
            value = function(guest, *ours)
            return result.theirs(value, store, guest) if result is not None else None
        except BaseException as error:
            raise _kept(guest, error) from None

    return call


def _kept(guest: Guest, error: BaseException) -> wasmtime.WasmtimeError:
    guest.failure = error
    return wasmtime.WasmtimeError(str(error) or type(error).__name__)
