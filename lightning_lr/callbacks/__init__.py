"""Callbacks: one file for each that a user can name, and their base.

Lightning's hooks: they gather, ask a policy, and act. No arithmetic; parts that are larger have a room of their own.
"""
