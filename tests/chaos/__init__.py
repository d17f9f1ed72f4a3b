"""The fault suite: real processes under load, faults on purpose, and a ledger of what was promised and what came of it.

`python -m tests.chaos` plays every scenario and prints a row for each; `tests/test_chaos.py` plays a few of them small.
"""
