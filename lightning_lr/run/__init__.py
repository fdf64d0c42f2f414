"""Run: one `fit`, and what all callbacks share in it.

The ledger and the journal, how long the run is, and how the callbacks see one another (`Peer`). It knows no single
callback.
"""
