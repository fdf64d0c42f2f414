"""Signals: numbers about an optimizer step, equal on all ranks.

The loss, the gradient norm, a monitored metric, the size of the weights. It changes no gradient, no weight and no
rate, and decides nothing.
"""
