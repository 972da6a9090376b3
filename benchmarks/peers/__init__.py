"""Comparisons with other job systems: what benchmarks.peers_reliability and benchmarks.peers_performance are made of.

Of the first: the hostile jobs, one adapter per peer, the scenarios, the report. hostile.py and the *_adapter.py files
are run in a peer's own environment, where this project is not installed. Of the second: performance/.
"""
