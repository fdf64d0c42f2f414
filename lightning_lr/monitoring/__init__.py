"""Monitoring: the parts of `LRMonitor`.

Losses and update ratios kept for pictures, the picture itself, and the story of a fit out of its own memory. It
changes nothing in a run.
"""
