"""Sans-IO protocol machines: values in, effects out. No I/O, clock or ambient randomness (see ARCHITECTURE.md)."""
