"""The verdict, for people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks import judge
from benchmarks.chaos.round import Report
from benchmarks.chaos.schedule import NOT_INJECTED

VIOLATIONS_SHOWN_MAX = 20
BUCKETS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
BAR_WIDTH = 40
KINDS_SHOWN_MAX = 8


def show_report(console: Console, report: Report) -> None:
    verdict = report.verdict
    table = Table("what", "count", "must be", title=f"seed {report.seed}, {report.seconds:g} s on {report.store}")
    table.add_row("faults", str(sum(report.struck.values())))
    table.add_row("acknowledged", str(verdict.acknowledged))
    table.add_row("uncertain (of these stored)", f"{verdict.uncertain} ({verdict.uncertain_stored})")
    table.add_row("refused", str(verdict.refused))
    for status, count in sorted(verdict.statuses.items()):
        table.add_row(f"completed: {status}", str(count))
    table.add_row("claims (given back)", f"{verdict.claims} ({verdict.refunds})")
    table.add_row("executions", str(verdict.executions))
    table.add_row("executed again, explained", str(sum(verdict.reexecuted.values())))
    table.add_row("overlaps while supervisor and guard were frozen", str(verdict.tagged_overlaps))
    for rule in (judge.LOST, judge.OVERLAP, judge.TWICE, judge.UNEXPLAINED):
        count = verdict.count(rule)
        table.add_row(rule, str(count), "0", style="red" if count else None)
    others = sum(1 for each in verdict.violations if each.rule not in _SHOWN)
    table.add_row("other rules broken", str(others), "0", style="red" if others else None)
    table.add_row("seconds until all had ended", f"{report.healed_seconds:.1f}")
    console.print(table)
    _show_causes(console, report)
    _show_recovery(console, verdict.recovery_seconds)
    for what, count in report.skipped.items():
        console.print(f"not injected {count} times: {what}", style="yellow")
    for missing in NOT_INJECTED:
        console.print(f"not injected: {missing}", style="yellow")
    for violation in verdict.violations[:VIOLATIONS_SHOWN_MAX]:
        console.print(f"{violation.rule}: {violation.text} run_id={violation.run_id}", style="red", highlight=False)
    if report.kept:
        console.print(f"kept: {report.kept}", soft_wrap=True)


_SHOWN = {judge.LOST, judge.OVERLAP, judge.TWICE, judge.UNEXPLAINED}


def _show_causes(console: Console, report: Report) -> None:
    """What ended the execution before; and what was done at the time, which may be several things at once."""
    table = Table("executed again after", "runs", "at that time", title="re-executions")
    counts: Counter[str] = Counter()
    around: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for cause, count in report.verdict.reexecuted.items():
        counts[cause.what] += count
        for kind in (cause.by or "nothing that is known").split(", "):
            around[cause.what][kind] += count
    for what, count in counts.most_common():
        kinds = ", ".join(f"{kind} {number}" for kind, number in around[what].most_common(KINDS_SHOWN_MAX))
        table.add_row(what, str(count), kinds)
    console.print(table)


def _show_recovery(console: Console, seconds: Sequence[float]) -> None:
    """From the kill or freeze of who held a run to its next start."""
    counts = Counter(next((limit for limit in BUCKETS if each <= limit), float("inf")) for each in seconds)
    table = Table("seconds", "runs", "", title="recovered after the loss of who held them")
    for limit in (*BUCKETS, float("inf")):
        bar = "█" * round(BAR_WIDTH * counts[limit] / max(counts.values(), default=1))
        table.add_row(f"≤ {limit:g}" if limit != float("inf") else "more", str(counts[limit]), bar)
    console.print(table)


def show_summary(console: Console, reports: Sequence[Report]) -> None:
    headings = (
        "seed",
        "faults",
        "acknowledged",
        "executions",
        "lost",
        "overlaps",
        "twice",
        "others",
        "healed",
        "holds",
    )
    table = Table(*headings, title="all seeds")
    for report in reports:
        verdict = report.verdict
        others = len(verdict.violations) - sum(map(verdict.count, (judge.LOST, judge.OVERLAP, judge.TWICE)))
        table.add_row(
            str(report.seed),
            str(sum(report.struck.values())),
            str(verdict.acknowledged),
            str(verdict.executions),
            str(verdict.count(judge.LOST)),
            str(verdict.count(judge.OVERLAP)),
            str(verdict.count(judge.TWICE)),
            str(others),
            f"{report.healed_seconds:.1f}",
            "yes" if report.holds else "NO",
            style=None if report.holds else "red",
        )
    console.print(table)
    for report in reports:
        if report.kept:
            console.print(f"seed {report.seed} kept: {report.kept}", soft_wrap=True)
