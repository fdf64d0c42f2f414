"""Sweeps: the parts of `LRFinder`.

One sweep from its first batch to its last, whether there is room for it, and what it found. It meets other callbacks
only as peers of the run.
"""
