"""Sweeps: the parts of `LRFinder`.

The search for a rate in one run: when a sweep is due, whether there is room for it, the sweep from its first batch to
its last, and what it found. Other callbacks are known only as peers of the run.
"""
