"""Benchmarks: speed, never success."""
