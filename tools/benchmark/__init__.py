"""Whole processes measured against each other on random checkpoints: ``tools/bench.py --help``."""
