"""The hostile suite: what strangers, lying vendors and their link servers send, and whether anything of it gets in.

`python -m tests.hostile` runs it whole; tests/test_hostile.py runs each scenario in its short form.
"""
