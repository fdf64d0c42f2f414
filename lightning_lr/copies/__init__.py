"""Copies: weights, buffers, optimizer state and all else that an optimizer step changes, kept and given back.

In host memory, each rank its share, bit for bit. It knows no rates, no time and no Lightning hooks, and decides
nothing.
"""
