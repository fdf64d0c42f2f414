"""Record: every change and every incident, for all loggers, on rank zero.

Lines of text, records (data) and scalars. It decides nothing, and knows a callback only by its name.
"""
