"""Many seeds and mutants on all cores, and the reports. Not: one run."""
