"""Honest numbers: manifests, runs, intervals, timings, the report."""
