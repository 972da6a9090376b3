"""The console script `durablestack`: migrate, enqueue, look at runs, and find out what is wrong.

arguments ──> program ──> migrate, enqueue, runs, doctor ──> printing ──> stdout
                 │                    │
                 └── errors, codes    └── Application: the jobs and the database that were named
"""

from .program import main

__all__ = ["main"]
