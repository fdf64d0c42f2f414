"""Policies: decisions as pure functions, `(state, input) -> (state, verdict)`.

States are frozen dataclasses of plain numbers that a checkpoint can hold. No torch, no Lightning, no clock, no
randomness, no files. Each can be used without the rest of the package.
"""
