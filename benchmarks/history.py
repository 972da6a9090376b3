"""What is known of a chaos run, and what a judge finds in it: records, and nothing that judges.

    intents, executions, changes, rows, attempts, said, disturbances, exits ──> judge() ──> Verdict

Instants are seconds since boot, by the one clock of the machine that all took part on. Changes of one run come in
the order in which the database made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from uuid import UUID

from msgspec import Struct


class Answer(StrEnum):
    """What whoever enqueued was told. UNCERTAIN: nothing, or that it is not known."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    UNCERTAIN = "uncertain"


class Intent(Struct, frozen=True, kw_only=True):
    """A run that somebody set out to enqueue, its id drawn before."""

    run_id: UUID
    job_name: str
    answer: Answer
    due_at: float
    cancelled: bool = False
    """Whether somebody has asked for its cancellation, whatever the answer was."""


class Execution(Struct, frozen=True, kw_only=True):
    """User code that ran, as it told of itself. `last_seen_at` is its last line: it was alive then, and perhaps later.

    `ended` is how it said that it would end, None if it did not come to that: "end", "raise", "die" or "told".
    """

    run_id: UUID
    attempt: int
    life: str
    pid: int
    started_at: float
    last_seen_at: float
    ended: str | None = None


class Change(Struct, frozen=True, kw_only=True):
    """A row of the table of runs that became another; `before` is None for a new one."""

    run_id: UUID
    at: float
    before: str | None
    after: str
    attempt_before: int | None
    attempt: int
    token_before: str | None
    token: str | None
    error_type: str | None = None

    @property
    def is_claim(self) -> bool:
        return self.after == "leased"

    @property
    def is_refund(self) -> bool:
        return self.before == "leased" and self.attempt_before is not None and self.attempt == self.attempt_before - 1


class Row(Struct, frozen=True, kw_only=True):
    """A run as it stands in the end."""

    run_id: UUID
    status: str
    attempt: int
    max_attempts: int
    error_type: str | None = None


class AttemptRow(Struct, frozen=True, kw_only=True):
    """A line of the history that the product itself keeps."""

    run_id: UUID
    attempt: int
    outcome: str
    error_type: str | None = None


class Said(Struct, frozen=True, kw_only=True):
    """What a supervisor said that the database had recorded: "succeeded", "failed", "retried" and so on."""

    life: str
    run_id: UUID
    attempt: int
    what: str


class Disturbance(Struct, frozen=True, kw_only=True):
    """Something that the nemesis did. `lives`: whom it struck; empty for the database or the network of all.

    `froze_together`: a supervisor and its guard were both stopped, so that nobody could end their children.
    `took_holder`: who held a run was killed or stopped, so that the run has to be recovered.
    """

    kind: str
    began_at: float
    ended_at: float
    lives: frozenset[str] = frozenset()
    pids: frozenset[int] = frozenset()
    froze_together: bool = False
    took_holder: bool = False


class Exit(Struct, frozen=True, kw_only=True):
    """A supervisor that ended. `by`: "killed", "asked", or empty if nobody wanted it."""

    life: str
    code: int
    started_at: float
    at: float
    by: str


class History(Struct, frozen=True, kw_only=True):
    """All that is known of one chaos run."""

    intents: Sequence[Intent] = ()
    executions: Sequence[Execution] = ()
    changes: Sequence[Change] = ()
    rows: Sequence[Row] = ()
    attempts: Sequence[AttemptRow] = ()
    said: Sequence[Said] = ()
    disturbances: Sequence[Disturbance] = ()
    exits: Sequence[Exit] = ()
    left_behind: Sequence[str] = ()
    runs_at_once_max: int = 1_000


class Violation(Struct, frozen=True):
    """A rule, and what broke it."""

    rule: str
    text: str
    run_id: UUID | None = None


class Cause(Struct, frozen=True):
    """Why a run was executed again. `by` is the job itself, the kinds of disturbances, or None: unexplained."""

    what: str
    by: str | None


class Verdict(Struct, frozen=True, kw_only=True):
    """What the judge found. All is well if there are no violations."""

    acknowledged: int
    uncertain: int
    uncertain_stored: int
    refused: int
    statuses: dict[str, int]
    executions: int
    claims: int
    refunds: int
    reexecuted: dict[Cause, int]
    tagged_overlaps: int
    recovery_seconds: list[float]
    violations: list[Violation]

    def count(self, rule: str) -> int:
        return sum(violation.rule == rule for violation in self.violations)
