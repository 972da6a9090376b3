"""Waking: what is heard makes the claimer look, and what goes wrong with hearing harms nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import anyio
import pytest

from durablestack.errors import StoreUnavailable
from durablestack.supervisor import waking
from durablestack.supervisor.pace import Pace
from durablestack.supervisor.waking import Waking

pytestmark = pytest.mark.anyio

AWAY = StoreUnavailable("away")


class Ear:
    """A listener that fails as told first, and hears what the test says."""

    def __init__(self, opens: Iterable[Exception | None] = (), works: Iterable[bool | Exception] = ()) -> None:
        self._opens = list(opens)
        self._works = list(works)
        self.steps: list[str] = []
        self.said, self._sounds = anyio.create_memory_object_stream[bool | Exception](100)

    async def open(self) -> None:
        self.steps.append("open")
        if self._opens and (failure := self._opens.pop(0)) is not None:
            raise failure

    async def works(self) -> bool:
        self.steps.append("works")
        answer = self._works.pop(0) if self._works else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def heard(self) -> bool:
        sound = await self._sounds.receive()
        if isinstance(sound, Exception):
            raise sound
        return sound

    async def close(self) -> None:
        self.steps.append("close")
        await anyio.lowlevel.checkpoint()

    def end(self) -> None:
        self.said.close()
        self._sounds.close()


class Claims:
    """How often the claimer was woken."""

    def __init__(self) -> None:
        self.looks = 0

    def wake(self) -> None:
        self.looks += 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "_TRY_AGAIN_SECONDS_FIRST", 0.01)
    monkeypatch.setattr(waking, "_TRY_AGAIN_SECONDS_MAX", 0.02)


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not true():
            await anyio.sleep(0.005)


async def test_each_hint_wakes_the_claimer_and_only_one_that_says_so_makes_it_look_again() -> None:
    ear, claims, pace = Ear(), Claims(), Pace(60.0, 0.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Waking(ear, pace, wake=claims.wake).run)
        ear.said.send_nowait(False)
        await until(lambda: claims.looks == 1)
        assert pace.told
        assert pace.rest_seconds() == 60.0
        ear.said.send_nowait(True)
        await until(lambda: claims.looks == 2)
        assert pace.rest_seconds() < 60.0
        tasks.cancel_scope.cancel()
    assert ear.steps[-1] == "close"
    assert not pace.told
    ear.end()


@pytest.mark.usefixtures("quick")
async def test_a_lost_connection_is_opened_anew_until_it_holds() -> None:
    ear, claims, pace = Ear(opens=[AWAY, AWAY, None, RuntimeError("can't start new thread")]), Claims(), Pace(60.0, 0.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Waking(ear, pace, wake=claims.wake).run)
        await until(lambda: pace.told)
        ear.said.send_nowait(AWAY)
        await until(lambda: ear.steps.count("open") == 5 and pace.told)
        ear.said.send_nowait(False)
        await until(lambda: claims.looks == 1)
        tasks.cancel_scope.cancel()
    assert ear.steps.count("open") == ear.steps.count("close")
    ear.end()


@pytest.mark.usefixtures("quick")
async def test_a_listener_that_has_become_deaf_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "_PROBE_EVERY_SECONDS", 0.01)
    ear, pace = Ear(works=[True, True, False, True, AWAY]), Pace(60.0, 0.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Waking(ear, pace, wake=Claims().wake).run)
        await until(lambda: ear.steps.count("open") == 3 and pace.told)
        tasks.cancel_scope.cancel()
    ear.end()


async def test_where_hints_never_arrive_it_is_said_once_and_tried_again_seldom(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waking, "_USELESS_FOR_SECONDS", 0.01)
    caplog.set_level(logging.INFO, logger="durablestack.supervisor.waking")
    ear, pace = Ear(works=[False] * 5), Pace(60.0, 0.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Waking(ear, pace, wake=Claims().wake).run)
        await until(lambda: ear.steps.count("open") == 6)
        tasks.cancel_scope.cancel()
    assert [record.message for record in caplog.records if "do not arrive" in record.message] != []
    assert len(caplog.records) == 1
    ear.end()


async def test_a_flood_of_hints_wakes_the_claimer_no_more_often_than_it_can_look() -> None:
    ear, claims = Ear(), Claims()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Waking(ear, Pace(60.0, 0.0), wake=claims.wake).run)
        await until(lambda: ear.steps == ["open", "works"])
        began_at = anyio.current_time()
        for _ in range(20):
            await ear.said.send(False)
        await until(lambda: claims.looks == 20)
        assert anyio.current_time() - began_at >= 19 * waking._LOOKS_APART_SECONDS
        tasks.cancel_scope.cancel()
    ear.end()
