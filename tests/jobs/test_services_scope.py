"""How a scope ends: with the attempt, knowing how it went; and services that take the event loop."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from attempts import Child

from durablestack import JobContext, Services
from durablestack.errors import NoRetry, RunCancelled
from durablestack.jobs.context import CancelFlag
from durablestack.jobs.execution import Raised, Returned
from durablestack.options import JobActivation

NewChild = Callable[..., Child]


class Session:
    pass


class Pool:
    pass


class Diary:
    """Session factories that write down how they end."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def open(self) -> Iterator[Session]:
        try:
            yield Session()
        except BaseException as error:
            self.lines.append(f"rolled back: {type(error).__name__}")
            raise
        else:
            self.lines.append("committed")

    async def open_async(self) -> AsyncIterator[Session]:
        try:
            yield Session()
        except BaseException as error:
            await asyncio.sleep(0)
            self.lines.append(f"rolled back: {type(error).__name__}")
            raise
        else:
            await asyncio.sleep(0)
            self.lines.append("committed")


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def new_child() -> Iterator[NewChild]:
    made: list[Child] = []

    def new_child(*arguments: Any, **keywords: Any) -> Child:
        made.append(Child(*arguments, **keywords))
        return made[-1]

    yield new_child
    for child in made:
        child.close()


@pytest.fixture(params=["generator", "async generator", "contextmanager", "asynccontextmanager"])
def diary(request: pytest.FixtureRequest, services: Services) -> Diary:
    diary = Diary()
    factories = {
        "generator": diary.open,
        "async generator": diary.open_async,
        "contextmanager": contextlib.contextmanager(diary.open),
        "asynccontextmanager": contextlib.asynccontextmanager(diary.open_async),
    }
    services.add_scoped(Session, factories[request.param])
    return diary


# --- on every way out


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("error_type", "line"),
    [
        (None, "committed"),
        (ValueError, "rolled back: ValueError"),
        (RunCancelled, "rolled back: RunCancelled"),
        (SystemExit, "rolled back: SystemExit"),
    ],
)
def test_a_scope_ends_as_the_attempt_did(
    is_async: bool,
    error_type: type[BaseException] | None,
    line: str,
    diary: Diary,
    services: Services,
    new_child: NewChild,
) -> None:
    error = error_type("told") if error_type else None

    def job(context: JobContext) -> None:
        assert isinstance(context.services.get(Session), Session)
        assert not diary.lines
        if error is not None:
            raise error

    async def async_job(context: JobContext) -> None:
        assert isinstance(await context.services.aget(Session), Session)
        assert not diary.lines
        if error is not None:
            raise error

    result = new_child(services).execute(async_job if is_async else job)
    assert diary.lines == [line]
    if error is None:
        assert result == Returned(noticed_cancel=False)
    else:
        assert isinstance(result, Raised)
        assert result.error_message == "told"
        assert "durablestack/jobs" not in result.error_detail
        assert "in open" not in result.error_detail, "the way through the factory is of no interest"


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_constructor_injection_is_scoped_alike(
    is_async: bool, diary: Diary, services: Services, new_child: NewChild
) -> None:
    class Job:
        def __init__(self, session: Session) -> None:
            self.session = session

        def execute(self, context: JobContext) -> None:
            raise ValueError("no")

    class AsyncJob:
        def __init__(self, session: Session) -> None:
            self.session = session

        async def execute(self, context: JobContext) -> None:
            assert self.session is await context.services.aget(Session)

    job = AsyncJob if is_async else Job
    new_child(services, job).execute(job)
    assert diary.lines == ["committed" if is_async else "rolled back: ValueError"]


def test_a_cancelled_async_job_rolls_back(diary: Diary, services: Services, new_child: NewChild) -> None:
    flag = CancelFlag()

    async def job(context: JobContext) -> None:
        await context.services.aget(Session)
        flag.set()
        await asyncio.sleep(60)

    result = new_child(services).execute(job, flag)
    assert isinstance(result, Raised)
    assert flag.noticed
    assert diary.lines == ["rolled back: CancelledError"]


@pytest.mark.parametrize("when", ["with the last step of the job", "while it is closed"])
def test_a_cancel_that_comes_too_late_for_the_job_does_not_cut_the_closing_of_its_scope_short(
    when: str, services: Services, new_child: NewChild
) -> None:
    flag, lines = CancelFlag(), []

    async def open_session() -> AsyncIterator[Session]:
        yield Session()
        if when == "while it is closed":
            flag.set()
        for _ in range(5):
            await asyncio.sleep(0)
        lines.append("committed")

    services.add_scoped(Session, open_session)

    async def job(context: JobContext) -> None:
        await context.services.aget(Session)
        if when == "with the last step of the job":
            flag.set()

    assert new_child(services).execute(job, flag) == Returned(noticed_cancel=False)
    assert lines == ["committed"]
    assert not flag.noticed


def test_a_job_that_was_cancelled_can_use_timeouts_and_task_groups_while_it_closes(
    services: Services, new_child: NewChild
) -> None:
    flag, lines = CancelFlag(), []

    async def open_session() -> AsyncIterator[Session]:
        try:
            yield Session()
        finally:
            async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.sleep(0))
            lines.append("closed")

    services.add_scoped(Session, open_session)

    async def job(context: JobContext) -> None:
        await context.services.aget(Session)
        flag.set()
        await asyncio.sleep(60)

    assert isinstance(new_child(services).execute(job, flag), Raised)
    assert lines == ["closed"]


def test_what_was_opened_last_is_closed_first_and_singletons_stay_open(services: Services) -> None:
    lines: list[str] = []

    def open_pool() -> Iterator[Pool]:
        yield Pool()
        lines.append("pool")

    def open_session(pool: Pool) -> Iterator[Session]:
        yield Session()
        lines.append("session")

    def open_unit(session: Session) -> Iterator[str]:
        yield "unit"
        lines.append("unit")

    services.add_singleton(Pool, open_pool)
    services.add_scoped(Session, open_session)
    services.add_scoped(str, open_unit)

    def job(context: JobContext) -> None:
        context.services.get(str)

    child = Child(services)
    child.succeed(job)
    child.succeed(job)
    assert lines == ["unit", "session"] * 2
    child.close()
    assert lines[4:] == ["pool"]


# --- when closing goes wrong


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_an_attempt_whose_scope_cannot_be_closed_has_not_succeeded(
    is_async: bool, services: Services, new_child: NewChild
) -> None:
    def open_session() -> Iterator[Session]:
        yield Session()
        raise NoRetry("the commit was refused") from ConnectionError("away")

    services.add_scoped(Session, open_session)

    def job(context: JobContext) -> None:
        context.services.get(Session)

    async def async_job(context: JobContext) -> None:
        context.services.get(Session)

    result = new_child(services).fail(async_job if is_async else job)
    assert (result.error_type, result.error_message) == ("durablestack.errors.NoRetry", "the commit was refused")
    assert not result.retryable
    assert "ConnectionError: away" in result.error_detail


def test_several_things_that_cannot_be_closed_are_told_together_and_each_has_its_turn(
    services: Services, new_child: NewChild
) -> None:
    def open_session() -> Iterator[Session]:
        yield Session()
        raise ValueError("session")

    def open_unit(session: Session) -> Iterator[str]:
        yield "unit"
        raise ValueError("unit")

    services.add_scoped(Session, open_session)
    services.add_scoped(str, open_unit)

    def job(context: JobContext) -> None:
        context.services.get(str)

    detail = new_child(services).fail(job).error_detail
    assert "ValueError: unit" in detail
    assert "ValueError: session" in detail


def test_the_error_of_the_job_goes_before_that_of_closing(services: Services, new_child: NewChild) -> None:
    def open_session() -> Iterator[Session]:
        try:
            yield Session()
        finally:
            raise ConnectionError("no rollback either")

    services.add_scoped(Session, open_session)

    def job(context: JobContext) -> None:
        context.services.get(Session)
        raise ValueError("the job's own")

    result = new_child(services).fail(job)
    assert (result.error_type, result.error_message) == ("ValueError", "the job's own")
    assert "Then its services were closed, which raised ConnectionError: no rollback either" in result.error_detail


def test_a_factory_that_swallows_the_error_does_not_make_a_success_of_it(
    services: Services, new_child: NewChild
) -> None:
    def open_session() -> Iterator[Session]:
        with contextlib.suppress(ValueError):
            yield Session()

    services.add_scoped(Session, open_session)

    def job(context: JobContext) -> None:
        context.services.get(Session)
        raise ValueError("no")

    assert new_child(services).fail(job).error_message == "no"


# --- on the event loop, and off it


async def connect() -> Pool:
    await asyncio.sleep(0)
    return Pool()


def test_both_kinds_of_jobs_get_what_an_async_factory_makes(services: Services, new_child: NewChild) -> None:
    services.add_singleton(Pool, connect)
    got: list[Pool] = []

    def job(context: JobContext) -> None:
        got.append(context.services.get(Pool))

    async def async_job(context: JobContext) -> None:
        got.append(await context.services.aget(Pool))

    child = new_child(services)
    child.succeed(job)
    child.succeed(async_job)
    assert isinstance(got[0], Pool)
    assert got[0] is got[1]


def test_an_async_job_is_told_to_await_what_takes_an_async_factory(services: Services, new_child: NewChild) -> None:
    def open_session(pool: Pool) -> Session:
        return Session()

    services.add_singleton(Pool, connect)
    services.add_scoped(Session, open_session)

    async def job(context: JobContext) -> None:
        context.services.get(Session)

    message = new_child(services).fail(job).error_message
    assert message.endswith("Session takes an async factory to make: await context.services.aget(Session)")


def test_what_no_async_factory_makes_a_sync_job_gets_without_a_running_loop(
    services: Services, new_child: NewChild
) -> None:
    def open_session() -> Iterator[Session]:
        asyncio.run(asyncio.sleep(0))  # refused below a running loop
        yield Session()
        asyncio.run(asyncio.sleep(0))

    services.add_scoped(Session, open_session)

    def job(context: JobContext) -> None:
        context.services.get(Session)

    new_child(services).succeed(job)


def test_an_async_job_gets_what_needs_the_running_loop_from_factories_of_both_kinds(
    services: Services, new_child: NewChild
) -> None:
    services.add_singleton(Pool, connect)

    def open_session(pool: Pool) -> Iterator[Session]:
        loop = asyncio.get_running_loop()
        yield Session()
        assert asyncio.get_running_loop() is loop

    services.add_scoped(Session, open_session)

    class Job:
        def __init__(self, session: Session) -> None: ...

        async def execute(self) -> None: ...

    new_child(services, Job).succeed(Job)


def test_a_job_that_runs_a_loop_of_its_own_is_told_whose_services_they_are(
    services: Services, new_child: NewChild
) -> None:
    services.add_singleton(Pool, connect)

    async def elsewhere(context: JobContext) -> None:
        await context.services.aget(Pool)

    def job(context: JobContext) -> None:
        asyncio.run(elsewhere(context))

    assert "belongs to the event loop of its process" in new_child(services).fail(job).error_message


def test_tasks_of_one_job_get_the_same(services: Services, new_child: NewChild) -> None:
    made: list[Session] = []

    async def open_session() -> Session:
        for _ in range(3):
            await asyncio.sleep(0)
        made.append(Session())
        return made[-1]

    services.add_scoped(Session, open_session)

    async def job(context: JobContext) -> None:
        got = await asyncio.gather(*(context.services.aget(Session) for _ in range(5)))
        assert len({*got}) == 1

    new_child(services).succeed(job)
    assert len(made) == 1


def test_a_factory_may_ask_the_context_for_more(services: Services, new_child: NewChild) -> None:
    async def open_session(context: JobContext) -> Session:
        await context.services.aget(Pool)
        return Session()

    services.add_scoped(Session, open_session)
    services.add_scoped(Pool, connect)

    async def job(context: JobContext) -> None:
        async with asyncio.timeout(30):
            await context.services.aget(Session)

    new_child(services).succeed(job)


def test_a_factory_that_waits_is_cancelled_with_its_job(services: Services, new_child: NewChild) -> None:
    flag = CancelFlag()

    async def open_session() -> Session:
        flag.set()
        await asyncio.sleep(60)
        return Session()

    services.add_scoped(Session, open_session)

    class Job:
        def __init__(self, session: Session) -> None: ...

        async def execute(self) -> None:
            pytest.fail("it was cancelled before")

    result = new_child(services, Job).execute(Job, flag)
    assert isinstance(result, Raised)
    assert result.error_type == "asyncio.exceptions.CancelledError"


# --- what outlives an attempt


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_task_of_a_singleton_goes_on_while_one_of_the_job_is_ended(
    is_async: bool, services: Services, new_child: NewChild
) -> None:
    tasks: dict[str, asyncio.Task[None]] = {}

    async def goes_on() -> None:
        await asyncio.Event().wait()

    async def open_pool() -> AsyncIterator[Pool]:
        tasks["pool"] = asyncio.create_task(goes_on())
        yield Pool()
        tasks["pool"].cancel()

    services.add_singleton(Pool, open_pool)

    def job(context: JobContext) -> None:
        context.services.get(Pool)

    async def async_job(context: JobContext) -> None:
        await context.services.aget(Pool)

    async def leaves_a_task() -> None:
        tasks["job"] = asyncio.create_task(goes_on())
        await asyncio.sleep(0)

    child = new_child(services)
    child.succeed(async_job if is_async else job)
    child.succeed(leaves_a_task)
    child.succeed(leaves_a_task)
    assert tasks["job"].cancelled()
    assert not tasks["pool"].done()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_each_attempt_has_context_variables_of_its_own_and_its_services_share_them(
    is_async: bool, services: Services, new_child: NewChild
) -> None:
    variable = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    def open_session() -> Iterator[Session]:
        token = variable.set("session")
        yield Session()
        variable.reset(token)  # raises in another context than the one it was set in

    services.add_scoped(Session, open_session)

    class Job:
        def __init__(self, session: Session) -> None: ...

        def execute(self) -> None:
            seen.append(variable.get())

    class AsyncJob:
        def __init__(self, session: Session) -> None: ...

        async def execute(self) -> None:
            seen.append(variable.get())

    def leaks() -> None:
        variable.set("leaked")

    async def leaks_async() -> None:
        variable.set("leaked")

    def looks() -> None:
        seen.append(variable.get())

    job = AsyncJob if is_async else Job
    child = new_child(services, job)
    child.succeed(job)
    child.succeed(leaks)
    child.succeed(leaks_async)
    child.succeed(looks)
    assert seen == ["session", "none"]


def test_with_root_provider_an_attempt_ends_nothing(services: Services) -> None:
    lines: list[str] = []

    async def open_pool() -> AsyncIterator[Pool]:
        yield Pool()
        lines.append("closed")

    services.add_singleton(Pool, open_pool)

    async def job(context: JobContext) -> None:
        await context.services.aget(Pool)
        raise ValueError("no")

    child = Child(services, activation=JobActivation.ROOT_PROVIDER)
    child.fail(job)
    child.fail(job)
    assert not lines
    child.close()
    assert lines == ["closed"]


def test_a_service_got_in_time_can_be_handed_to_other_threads(services: Services, new_child: NewChild) -> None:
    services.add_scoped(Session)

    def job(context: JobContext) -> None:
        session, seen = context.services.get(Session), []
        thread = threading.Thread(target=lambda: seen.append(session))
        thread.start()
        thread.join()
        assert seen == [session]

    new_child(services).succeed(job)
