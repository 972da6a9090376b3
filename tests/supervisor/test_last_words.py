"""The last word of a child: it counts if it is whole, and only then, however and whenever the child ends."""

from collections import Counter
from uuid import UUID

import pytest

from hostile_bench import KILLED, SUCCEEDED, BenchOn, HostileBench, bench_on, no_process_left_behind, raised

__all__ = ["bench_on", "no_process_left_behind"]

BEYOND_BYTES = 15


@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
def test_a_reply_that_is_cut_after_any_of_its_bytes_counts_if_none_is_missing(bench_on: BenchOn, fails: bool) -> None:
    bench = bench_on("sqlite")
    first = bench.finished("is-cut-short", {"after_bytes": 0, "fails": fails})
    cuts = [*range(1, frame_bytes(bench, first.id) + BEYOND_BYTES)]
    run_ids = bench.client.enqueue_many("is-cut-short", [{"after_bytes": cut, "fails": fails} for cut in cuts])
    whole = raised("ValueError") if fails else SUCCEEDED
    complete = Counter[bool]()
    for cut, run_id in zip(cuts, run_ids, strict=True):
        run = bench.until_terminal(run_id)
        is_complete = cut >= frame_bytes(bench, run_id)
        assert bench.told(run) == (whole if is_complete else KILLED), (cut, frame_bytes(bench, run_id), run)
        complete[is_complete] += 1
    assert min(complete[False], complete[True]) > BEYOND_BYTES / 2, "cuts before and after the end"
    bench.until_whole()


def frame_bytes(bench: HostileBench, run_id: UUID) -> int:
    return next(int(note.what.removeprefix("frame-of-")) for note in bench.notes(run_id))


@pytest.mark.parametrize("how", ["exit-0", "sigkill", "segfault"])
def test_a_child_that_ends_with_its_reply_has_not_crashed(bench_on: BenchOn, how: str) -> None:
    """A hundred times each."""
    bench = bench_on("sqlite")
    for run_id in bench.client.enqueue_many("ends-with-its-reply", [how] * 100):
        run = bench.until_terminal(run_id)
        assert bench.told(run) == SUCCEEDED, run
    bench.until_whole()
