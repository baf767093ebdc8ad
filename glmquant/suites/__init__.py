"""Suites of measurements that others keep: configured, run, and read."""
