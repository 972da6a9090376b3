"""Whether a supervisor lives and whether it is ready, told by the reasons why not.

To be asked on the event loop: that it answers at all is half of the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tree import Supervisor


def why_not_live(supervisor: Supervisor) -> list[str]:
    """Empty unless only a restart can help."""
    return [] if supervisor.heartbeat.turns else ["the heartbeat is stuck"]


def why_not_ready(supervisor: Supervisor) -> list[str]:
    """Empty if a run that becomes due now would be executed here."""
    if not supervisor.started.is_set():
        return ["it is starting"]
    reasons = why_not_live(supervisor)
    if supervisor.stopping:
        reasons.append("it is stopping")
    if supervisor.claimer.unanswered or supervisor.heartbeat.unanswered or supervisor.backlog.unanswered:
        reasons.append("the database does not answer")
    if all(executor.pid is None for executor in supervisor.pool.executors):
        reasons.append("no child is ready to execute runs")
    if supervisor.reports.degraded:
        reasons.append("children die more often than the restart limit allows")
    return reasons
