"""Record: every change and everything that happened, for all loggers, on rank zero.

Words, records (data), and scalars. It decides nothing, and knows no callback but by its name.
"""
