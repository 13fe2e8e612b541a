"""How a run flows: compose, identify, load, method, evaluate, record, table.

Importing this package imports no torch, and neither does anything in it that the command line needs before a
run starts.
"""
