"""Run ids are UUIDv7 (RFC 9562), increase strictly within a process, and are never drawn twice."""

import threading
import time
from itertools import pairwise
from uuid import RFC_4122, UUID

import pytest

from durablestack.ids import new_run_id


def milliseconds(run_id: UUID) -> int:
    return run_id.int >> 80


def test_an_id_has_the_bits_of_rfc_9562() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_run_id() for _ in range(1_000)]
    after = time.time_ns() // 1_000_000
    assert {run_id.version for run_id in ids} == {7}
    assert {run_id.variant for run_id in ids} == {RFC_4122}
    assert {(run_id.int >> 62) & 0b11 for run_id in ids} == {0b10}
    assert all(before <= milliseconds(run_id) <= after + 1 for run_id in ids)


def test_ids_increase_strictly_as_numbers_as_text_and_as_bytes() -> None:
    ids = [new_run_id() for _ in range(10_000)]
    assert all(one < next for one, next in pairwise(ids))
    assert sorted(ids, key=str) == sorted(ids, key=lambda run_id: run_id.bytes) == ids


def test_threads_draw_different_ids_each_in_increasing_order() -> None:
    drawn: list[list[UUID]] = [[] for _ in range(8)]
    together = threading.Barrier(len(drawn))

    def draw(ids: list[UUID]) -> None:
        together.wait()
        ids.extend(new_run_id() for _ in range(2_000))

    threads = [threading.Thread(target=draw, args=(ids,)) for ids in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(ids == sorted(ids) for ids in drawn)
    assert len({run_id for ids in drawn for run_id in ids}) == 16_000


def test_a_clock_that_is_set_back_does_not_set_ids_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_run_id()
    real = time.time_ns
    monkeypatch.setattr("durablestack.ids.time.time_ns", lambda: real() - 3_600 * 10**9)
    ids = [before, *(new_run_id() for _ in range(5_000))]
    assert ids == sorted(set(ids))
    assert {run_id.version for run_id in ids} == {7}
