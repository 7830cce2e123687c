"""Benchmarks beside what a user would pick instead, interleaved in one run. `python -m bench`."""
