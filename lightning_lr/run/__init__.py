"""Run: one `fit`, and what all callbacks share in it.

The ledger and the journal, the length of the run, and how the callbacks see one another (`Peer`). It knows no
individual callback.
"""
