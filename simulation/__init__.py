"""The protocols/ machines under virtual time, with a faulty network, disk and clock, driven by a seed."""
