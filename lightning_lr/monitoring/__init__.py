"""Monitoring: the parts of `LRMonitor`.

Losses and update ratios for pictures, the picture itself, and the story of a fit from memory. It changes nothing in
a run.
"""
