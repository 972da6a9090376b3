"""The console script `durablestack`: migrate, enqueue, look after runs and schedules, find out what is wrong.

arguments ──> program ──> migrate, enqueue, runs, schedules, doctor, cron ──> printing ──> stdout
                 │                    │
                 └── errors, codes    └── Application: the jobs and the database that were named
"""

from .program import main

__all__ = ["main"]
