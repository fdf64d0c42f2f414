"""Batches: what is in one, copies of it, the same batches once more, and the random numbers that go with them.

It knows the training loop only as the one that asks for a batch, and not what the batches are for.
"""
