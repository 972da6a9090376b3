"""What benchmarks.peers_performance is made of: contenders, places, scenarios, the report; and one adapter per package.

adapters/ is run in a package's own environment, where this project is not installed.
"""
