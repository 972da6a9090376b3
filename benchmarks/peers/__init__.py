"""What benchmarks.peers_reliability is made of: the hostile jobs, one adapter per peer, the scenarios, the report.

hostile.py and the *_adapter.py files are run in a peer's own environment, where this project is not installed.
"""
