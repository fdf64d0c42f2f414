"""Guard: the parts of `DivergenceGuard`.

Measuring, asking the policy, limiting, dropping, trials, copies and incidents. It meets other callbacks only as
peers of the run.
"""
