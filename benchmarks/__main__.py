"""`python -m benchmarks [NAME ...] [--quick]`: run the measuring modules, or those named, and write the results."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import sys
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import benchmarks
from benchmarks import machine, report


def modules() -> dict[str, ModuleType]:
    """Every module of this package with a `run`, by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(benchmarks.__path__) if not info.name.startswith("_"))
    loaded = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    return {name: module for name, module in loaded.items() if hasattr(module, "run")}


def measure(module: ModuleType, quick: bool) -> dict[str, Any]:
    """Run one module; print each row as it comes."""
    run: Callable[..., Iterable[Any]] = module.run
    described, began_s, rows = machine.describe(), time.monotonic(), []
    for row in run(quick) if inspect.signature(run).parameters else run():
        fields = {"note": "", **row._asdict()}
        rows.append(fields)
        met = {True: "met", False: "MISSED", None: ""}[row.met]
        print(f"  {row.name}: {row.value:,g} {row.unit}  {row.aim} {met}  {row.peer}", flush=True)
    about = inspect.cleandoc(module.__doc__ or "")
    return {"about": about, "machine": described, "seconds": round(time.monotonic() - began_s, 1), "rows": rows}


def main() -> None:
    """Run, write, and show missed aims first."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    module_types = modules()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(module_types)}")
    parser.add_argument("--quick", action="store_true", help="shorter rounds, for a look; the results are not written")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in module_types]
    if unknown:
        parser.error(f"there is no module {unknown[0]!r}; there are {', '.join(module_types)}")
    results = report.load()
    fresh: report.Results = {}
    for name in chosen.names or module_types:
        print(name, flush=True)
        fresh[name] = measure(module_types[name], chosen.quick)
        if not chosen.quick:
            results[name] = fresh[name]
            report.save(results)
    missed = [row for result in fresh.values() for row in result["rows"] if row["met"] is False]
    print("\nMissed aims:\n" + report.table(missed) if missed else "\nEvery aim is met.")
    if chosen.quick:
        print("(--quick: nothing written)", file=sys.stderr)


if __name__ == "__main__":
    main()
