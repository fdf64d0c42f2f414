"""Rates: the ledger, the only code that writes a learning rate, and what it keeps.

Base rates, named factors, trial rates, and the changes that a listener hears of. It knows no callback, and not why a
factor has its value.
"""
