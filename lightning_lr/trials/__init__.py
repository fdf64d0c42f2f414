"""Trials: batches that run at other weights, and leave no trace.

What the guard and the sweeps have in common: a second state, which is in place only within a batch, and the run's
own state, kept meanwhile. It decides nothing, and knows neither guard nor sweep.
"""
