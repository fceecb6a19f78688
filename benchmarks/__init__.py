"""Benchmarks that validate, then time, every contestant in one run. Run them from the root of a checkout."""
