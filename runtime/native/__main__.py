"""Says whether the native engine can serve here: `python -m runtime.native`, which exits 1 if it cannot."""

from __future__ import annotations

import sys

from runtime.native.choice import load_module


def main() -> int:
    """Print one line; return the exit status."""
    module, why = load_module()
    print("the native engine is built and fits" if module is not None else f"the native engine cannot serve: {why}")
    return int(module is None)


if __name__ == "__main__":
    sys.exit(main())
