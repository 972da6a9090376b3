"""Services and hooks where they live: in real children, from the start of one to its end."""

import os
import signal
import textwrap
from pathlib import Path

import pytest

from durablestack import DurableStack, RunStatus, Services, TargetError
from durablestack.options import DurableStackOptions
from workers import Bench, Worker, eventually

ONE_CHILD = {"DURABLESTACK__MAX_CONCURRENT_RUNS": "1"}

SHOP = """
    import asyncio, os, pathlib, subprocess, threading, uuid
    from durablestack import DurableStack, JobContext, Services, durable_job

    services = Services()
    stack = DurableStack(__name__, services=services)
    diary = pathlib.Path("shop-diary")

    def note(what):
        with diary.open("a") as lines:
            lines.write(f"{what} {os.getpid()}\\n")

    class Mailer:
        def __init__(self) -> None:
            self.name = uuid.uuid4().hex

    class Session:
        pass

    async def open_session():
        try:
            yield Session()
        except BaseException as error:
            note(f"rolled-back-{type(error).__name__}")
            raise
        else:
            note("committed")
"""
"""The start of an application. Its jobs have names that the client of the bench knows."""


def write_shop(bench: Bench, rest: str) -> None:
    (bench.folder / "shop.py").write_text(textwrap.dedent(SHOP) + textwrap.dedent(rest))


def shop_worker(bench: Bench, *arguments: str, settings: dict[str, str] | None = None, target: str = "shop") -> Worker:
    return bench.worker(*arguments, settings={**ONE_CHILD, **(settings or {})}, target=target)


def noted(bench: Bench, what: str) -> list[int]:
    """The processes that noted it, in order."""
    diary = bench.folder / "shop-diary"
    lines = [line.split() for line in diary.read_text().splitlines()] if diary.exists() else []
    return [int(pid) for each, pid in lines if each == what]


def output_of(bench: Bench, job_name: str) -> str:
    run = bench.until_terminal(bench.client.enqueue(job_name))
    assert run.status is RunStatus.SUCCEEDED, run
    return (run.stdout_tail or "").strip()


# --- lifetimes


def test_a_singleton_is_shared_in_a_child_and_made_anew_in_the_next_one(any_bench: Bench) -> None:
    write_shop(
        any_bench,
        """
        services.add_singleton(Mailer)
        services.add_scoped(Session, open_session)

        @durable_job(name="innocent")
        class Innocent:
            def __init__(self, mailer: Mailer, session: Session) -> None:
                self.mailer = mailer

            def execute(self, context: JobContext) -> None:
                assert context.services.get(Mailer) is self.mailer
                print(self.mailer.name)

        @durable_job(name="once")
        async def once(context: JobContext) -> None:
            await context.services.aget(Session)
            print((await context.services.aget(Mailer)).name)
        """,
    )
    worker = shop_worker(any_bench)
    first = output_of(any_bench, "innocent")
    assert [output_of(any_bench, "once"), output_of(any_bench, "innocent")] == [first, first]
    [child] = worker.children()
    os.kill(child, signal.SIGKILL)
    eventually(lambda: worker.children() not in ([], [child]), what="another child")
    assert output_of(any_bench, "innocent") != first
    assert len(noted(any_bench, "committed")) == 4


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_timed_out_attempt_that_leaves_in_time_ends_its_scope_knowing_why(
    sqlite_bench: Bench, is_async: bool
) -> None:
    leaves = """
        @durable_job(name="once", timeout_seconds=0.3)
        class Once:
            def __init__(self, session: Session) -> None: ...

            def execute(self, context: JobContext) -> None:
                context.wait_cancelled(60)
                context.raise_if_cancelled()
        """
    is_cancelled = """
        @durable_job(name="once", timeout_seconds=0.3)
        class Once:
            def __init__(self, session: Session) -> None: ...

            async def execute(self, context: JobContext) -> None:
                await asyncio.sleep(60)
        """
    add = "services.add_scoped(Session, open_session)\n"
    write_shop(sqlite_bench, add + textwrap.dedent(is_cancelled if is_async else leaves))
    shop_worker(sqlite_bench, settings={"DURABLESTACK__CANCEL_GRACE_SECONDS": "30"})
    run = sqlite_bench.until_terminal(sqlite_bench.client.enqueue("once"))
    assert (run.status, run.error_type) == (RunStatus.FAILED, "RunTimeout")
    assert noted(sqlite_bench, f"rolled-back-{'CancelledError' if is_async else 'RunCancelled'}")


def test_a_commit_that_fails_fails_the_attempt(sqlite_bench: Bench) -> None:
    write_shop(
        sqlite_bench,
        """
        def open_refused():
            yield Session()
            raise ConnectionError("the commit was refused")

        services.add_scoped(Session, open_refused)

        @durable_job(name="once")
        def once(context: JobContext) -> None:
            context.services.get(Session)
        """,
    )
    shop_worker(sqlite_bench)
    run = sqlite_bench.until_terminal(sqlite_bench.client.enqueue("once"))
    assert (run.status, run.error_message) == (RunStatus.FAILED, "the commit was refused")


@pytest.mark.parametrize(
    "starts",
    ["threading.Thread(target=threading.Event().wait).start()", "subprocess.Popen(['sleep', '300'])"],
    ids=["thread", "process"],
)
def test_what_a_singleton_starts_does_not_cost_the_child_its_next_run(sqlite_bench: Bench, starts: str) -> None:
    write_shop(
        sqlite_bench,
        f"""
        class Exporter:
            def __init__(self) -> None:
                self.started = {starts}

        services.add_singleton(Exporter)

        @durable_job(name="once")
        def once(context: JobContext) -> None:
            context.services.get(Exporter)
            print(os.getpid())

        @durable_job(name="innocent")
        def innocent(context: JobContext) -> None:
            threading.Thread(target=threading.Event().wait).start()
            print(os.getpid())
        """,
    )
    shop_worker(sqlite_bench)
    assert len({output_of(sqlite_bench, "once") for _ in range(4)}) == 1
    assert len({output_of(sqlite_bench, "innocent") for _ in range(2)}) == 2, "what a job starts still does"


# --- what cannot be made


ASKS_FOR_A_MAILER = """
    @durable_job(name="innocent")
    class Innocent:
        def __init__(self, mailer: Mailer) -> None: ...
        def execute(self) -> None: ...
    """


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_job_that_asks_for_what_is_not_registered_stops_the_supervisor_with_a_sentence(
    sqlite_bench: Bench, start_method: str
) -> None:
    write_shop(sqlite_bench, ASKS_FOR_A_MAILER)
    run_id = sqlite_bench.client.enqueue("innocent")
    worker = sqlite_bench.worker("--start-method", start_method, target="shop")
    assert worker.exit_code() == 2
    assert (
        "error: job 'innocent' cannot be made: parameter 'mailer' asks for shop.Mailer, which is not registered; add "
        "it to the services of the DurableStack, as in services.add_singleton(Mailer), or give the parameter a default"
    ) in worker.log()
    assert "Traceback" not in worker.log()
    assert (sqlite_bench.run(run_id).status, sqlite_bench.run(run_id).attempt) == (RunStatus.PENDING, 0)


def test_root_provider_refuses_what_is_scoped_with_the_reason(sqlite_bench: Bench) -> None:
    write_shop(sqlite_bench, "services.add_scoped(Mailer)\n" + textwrap.dedent(ASKS_FOR_A_MAILER))
    worker = shop_worker(sqlite_bench, settings={"DURABLESTACK__JOB_ACTIVATION": "root_provider"})
    assert worker.exit_code() == 2
    assert "asks for shop.Mailer: it lives for one attempt, and there is no scope for it" in worker.log()
    assert "job_activation is root_provider" in worker.log()


def test_nothing_is_made_in_the_supervisor_or_in_a_client(sqlite_bench: Bench) -> None:
    write_shop(
        sqlite_bench,
        """
        class Noted:
            def __init__(self) -> None:
                note("made")

        services.add_singleton(Noted)

        @durable_job(name="innocent")
        class Innocent:
            def __init__(self, noted: Noted) -> None: ...
            def execute(self) -> None:
                note("executed")
        """,
    )
    worker = shop_worker(sqlite_bench)
    [child] = worker.until_ready(children=1)
    output_of(sqlite_bench, "innocent")
    assert noted(sqlite_bench, "made") == noted(sqlite_bench, "executed") == [child]


# --- which stack


def test_of_two_stacks_only_the_services_of_the_one_that_is_used_count(sqlite_bench: Bench) -> None:
    write_shop(
        sqlite_bench,
        """
        other_services = Services()
        other = DurableStack(__name__, services=other_services)
        plain = DurableStack(__name__)
        services.add_singleton(str, lambda: "of stack")
        other_services.add_singleton(str, lambda: "of other")

        @other.on_child_start
        def start() -> None:
            note("other-started")

        @durable_job(name="innocent")
        class Innocent:
            def __init__(self, text: str = "of nobody") -> None:
                self.text = text

            def execute(self) -> None:
                print(self.text)
        """,
    )
    for name, said in (("stack", "of stack"), ("plain", "of nobody"), ("other", "of other")):
        worker = shop_worker(sqlite_bench, target=f"shop:{name}")
        assert output_of(sqlite_bench, "innocent") == said
        worker.terminate()
        assert worker.exit_code() == 0
        assert bool(noted(sqlite_bench, "other-started")) == (name == "other")


def test_a_stack_that_children_cannot_find_is_refused_if_they_would_miss_it() -> None:
    services = Services()
    services.add_singleton(str)
    with pytest.raises(TargetError, match="assign it to a name in one of the modules that are its targets"):
        _ = DurableStack("chaos_jobs", options=DurableStackOptions(), services=services).child_targets
    assert DurableStack("chaos_jobs", options=DurableStackOptions()).child_targets == ("chaos_jobs",)


# --- hooks


HOOKS = """
    services.add_singleton(Mailer)

    @stack.on_child_start
    def start() -> None:
        note("started")

    @stack.on_child_start
    async def start_async(services) -> None:
        await asyncio.sleep(0)
        threading.Thread(target=threading.Event().wait).start()
        note(f"has-{(await services.aget(Mailer)).name}")

    @stack.on_child_stop
    def stop() -> None:
        note("stopped")

    @stack.on_child_stop
    async def stop_async() -> None:
        note("stopped-first")

    @durable_job(name="innocent")
    def innocent(context: JobContext) -> None:
        note(f"has-{context.services.get(Mailer).name}")

    @durable_job(name="once")
    def once() -> None:
        os.chdir("/")
    """


def test_start_hooks_are_called_once_in_each_child_and_stop_hooks_when_it_leaves(any_bench: Bench) -> None:
    write_shop(any_bench, HOOKS)
    worker = any_bench.worker(target="shop")
    children = worker.until_ready(children=2)
    for _ in range(3):
        output_of(any_bench, "innocent")
    assert sorted(noted(any_bench, "started")) == sorted(children)
    worker.terminate()
    assert worker.exit_code() == 0
    assert sorted(noted(any_bench, "stopped")) == sorted(noted(any_bench, "stopped-first")) == sorted(children)
    assert "ended with" not in worker.log(), "nobody worries about a child that leaves"
    lines = [line.split()[0] for line in (any_bench.folder / "shop-diary").read_text().splitlines()]
    assert lines.index("stopped-first") < lines.index("stopped"), "they are called in the reversed order"
    assert len({line for line in lines if line.startswith("has-")}) == 2, "one mailer per child, for hooks and jobs"


def test_a_child_that_retires_leaves_in_good_order(sqlite_bench: Bench) -> None:
    write_shop(sqlite_bench, HOOKS.replace('os.chdir("/")', "import sys; sys.setrecursionlimit(5_000)"))
    worker = shop_worker(sqlite_bench)
    [child] = worker.until_ready(children=1)
    output_of(sqlite_bench, "once")
    eventually(lambda: noted(sqlite_bench, "stopped") == [child], what="the stop hook")
    eventually(lambda: worker.children() not in ([], [child]), what="another child")


def test_singletons_are_ended_when_the_worker_stops(sqlite_bench: Bench) -> None:
    write_shop(
        sqlite_bench,
        """
        async def open_mailer():
            yield Mailer()
            await asyncio.sleep(0)
            note("closed")

        services.add_singleton(Mailer, open_mailer)

        @durable_job(name="innocent")
        def innocent(context: JobContext) -> None:
            context.services.get(Mailer)
            note("got")
        """,
    )
    worker = shop_worker(sqlite_bench)
    output_of(sqlite_bench, "innocent")
    worker.terminate()
    assert worker.exit_code() == 0
    assert noted(sqlite_bench, "closed") == noted(sqlite_bench, "got")


def test_a_stop_hook_that_hangs_does_not_keep_the_worker(sqlite_bench: Bench) -> None:
    write_shop(sqlite_bench, HOOKS.replace('note("stopped-first")', "await asyncio.sleep(600)"))
    worker = shop_worker(sqlite_bench)
    worker.until_ready(children=1)
    output_of(sqlite_bench, "innocent")
    worker.terminate()
    assert worker.exit_code() == 0


def test_while_a_start_hook_raises_nothing_is_claimed_and_it_is_told_and_all_is_well_once_it_does_not(
    any_bench: Bench,
) -> None:
    write_shop(
        any_bench,
        """
        @stack.on_child_start
        def connect() -> None:
            if not pathlib.Path("healed").exists():
                raise ConnectionError("the warehouse is away")

        @durable_job(name="innocent")
        def innocent() -> None: ...
        """,
    )
    worker = any_bench.worker(target="shop")
    run_id = any_bench.client.enqueue("innocent")
    told = "cannot start: StartHookFailed: start hook shop.connect: ConnectionError: the warehouse is away"
    eventually(lambda: worker.log().count(told) >= 3, what=worker.log())
    assert (any_bench.run(run_id).status, any_bench.run(run_id).attempt) == (RunStatus.PENDING, 0)
    assert worker.process.poll() is None
    Path(any_bench.folder, "healed").touch()
    assert any_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1
