"""Text that means harm, in every argument that takes text: refused in one sentence of ours, or kept as it is.

Whatever becomes of it, the run and the schedule of somebody else stay as they are, and so do the tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from durablestack import DurableStack, durable_job
from durablestack.cli import main
from durablestack.errors import DurableStackError
from durablestack.jobs import JobRegistry
from durablestack.options import DurableStackOptions
from durablestack.runs import RunStatus
from durablestack.schedules import Schedule
from durablestack.stores.contract import Claim
from durablestack.stores.dialects.mysql import MYSQL
from durablestack.stores.dialects.postgres import POSTGRES
from durablestack.stores.dialects.sqlite import SQLITE
from durablestack.stores.dialects.sqlserver import SQLSERVER
from durablestack.stores.migrate import SCHEMA_VERSION, statements_of
from durablestack.stores.sql import SqlStore
from durablestack.stores.statements import TEMPLATES

PIECES = [
    *(
        "'",
        '"',
        "`",
        ";",
        "--",
        "/*",
        "*/",
        "#",
        "\\",
        "\\'",
        "''",
        "||",
        " or 1=1",
        "; drop table durable_stack_jobs;",
    ),
    *("%", "%s", "%(id)s", ":id", ":job_name", "{runs}", "{prefix}", "{0}", "{", "}", "$1", "$$", "?", "@x", "!", "&"),
    *("\0", "\n", "\r", "\t", "\x1b[31m", "\x7f", "\x85", "\ud800", "\udfff", "\u202e", "\u2028", "🦕", "𝄞", "é"),
    *(
        "x" * 201,
        "𝄞" * 201,
        " ",
        "a",
        "null",
        "-1",
        "NaN",
        "../",
        "<img src=x onerror=x>",
        "* * * * *",
        "UTC",
        "pending",
    ),
]
CORPUS = [
    """it's "quoted" `so` \\' ; drop table durable_stack_job_runs; -- /* """,
    "%s %(id)s %% :id :job_name {runs} {0} $1 ? @x",
    "' or '1'='1",
    "\\",
    "nul \0 inside",
    "lone \ud800 surrogate",
    "right \u202e to left, 𝄞 of four bytes, and \x1b[31m red\r\n",
    "x" * 100_000,
    "",
    " ",
]
KEPT, OTHERS = "kept", "somebody-else"


@durable_job(name="echo")
def echo(text: str) -> None:
    return


class Refused(str):
    """The sentence in which it was."""


def answer(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    try:
        return call(*arguments, **keywords)
    except DurableStackError as error:
        return Refused(error)


class Victim:
    """An application on a database where somebody else has a run and a schedule."""

    def __init__(self, **options: Any) -> None:
        self.stack = DurableStack(jobs=[echo], options=DurableStackOptions(**options))
        self.stack.migrate()
        self.others = self.stack.client.schedule("echo", OTHERS, run_at=datetime(2999, 1, 1, tzinfo=UTC))
        self.stack.store.change_schedule(KEPT, lambda _, now: _schedule(KEPT, now))
        self.before = self._untouched()

    def _untouched(self) -> tuple[Any, ...]:
        schedule = self.stack.store.get_schedule(KEPT)
        return self.stack.queries.get_run(self.others), schedule, self.stack.store.list_schedules() == [schedule]

    def attack(self, text: str) -> None:
        self._with_ids(text)
        self._with_payloads(text)
        self._with_names(text)
        self._with_schedules(text)
        self._with_options(text)
        self.stack.store.verify_schema()
        assert self._untouched() == self.before
        while self.stack.store.prune_runs(timedelta(0), 100):
            continue

    def _with_ids(self, text: str) -> None:
        client, queries = self.stack.client, self.stack.queries
        for call in (client.cancel_run, queries.get_run, queries.get_attempts, queries.get_stack):
            assert isinstance(answer(call, text), Refused)
        assert isinstance(answer(client.enqueue, "echo", "x", run_id=text), Refused)
        assert isinstance(answer(client.schedule, "echo", "x", run_at=text), Refused)
        assert isinstance(answer(queries.get_recent_runs, text), Refused)

    def _with_payloads(self, text: str) -> None:
        run_id = answer(self.stack.client.enqueue, "echo", text)
        if isinstance(run_id, Refused):
            assert re.search("[\ud800-\udfff]", text), "what else could be wrong with it"
            return
        run = self.stack.queries.get_run(run_id)
        assert run is not None
        assert msgspec.json.decode(run.payload or "") == text
        claimed = self._claim("echo", worker_name="w")
        assert [each.id for each in claimed] == [run_id]
        assert msgspec.json.decode(claimed[0].payload) == text
        self._cancel(run_id)

    def _with_names(self, text: str) -> None:
        queries = self.stack.queries
        assert isinstance(answer(self.stack.client.enqueue, text, "x"), Refused)
        assert answer(queries.get_runs_by_job_name, text) in ([],) or self._refuses(queries.get_runs_by_job_name, text)
        assert answer(queries.count_due, [text]) == 0 or self._refuses(queries.count_due, [text])
        assert text in list(RunStatus) or isinstance(answer(queries.get_runs_by_status, text), Refused)
        registration = answer(JobRegistry().add, echo, name=text)
        if isinstance(registration, Refused):
            assert not 0 < len(text) <= 200 or not text.isprintable()
            return
        named = DurableStack(jobs=[], options=self.stack.options)
        named.__dict__["store"] = self.stack.store
        named.add_job(echo, name=text)
        run_id = named.client.enqueue(text, "x")
        assert [run.id for run in queries.get_runs_by_job_name(text)][:1] == [run_id]
        assert [run.job_name for run in self._claim(text, worker_name="w")] == [text]
        self._cancel(run_id)

    def _with_schedules(self, text: str) -> None:
        admin = self.stack.schedules
        for call in (admin.get_scheduled_job, admin.run_scheduled_job_now):
            assert isinstance(answer(call, text), Refused)
        assert isinstance(answer(admin.set_scheduled_job_enabled, text, False), Refused)
        assert isinstance(answer(admin.update_scheduled_job_cron, text, "0 0 * * *"), Refused)
        for cron, zone in ((text, None), ("0 0 * * *", text)):
            changed = answer(admin.update_scheduled_job_cron, KEPT, cron, zone)
            if not isinstance(changed, Refused):
                assert text in (changed.cron_expression, changed.time_zone)
                self.stack.store.change_schedule(KEPT, lambda *_: self.before[1])
                self.before = self._untouched()

    def _with_options(self, text: str) -> None:
        assert self._refuses(DurableStackOptions, database_table_prefix=text) or re.fullmatch(
            "[a-zA-Z][a-zA-Z0-9_]*", text
        )
        worker_name = answer(lambda: DurableStackOptions(worker_name=text).worker_name)
        if not isinstance(worker_name, Refused):
            assert worker_name == text
            run_id = self.stack.client.enqueue("echo", "x")
            assert [run.lease_owner for run in self._claim("echo", worker_name=text)] == [text]
            run = self.stack.queries.get_run(run_id)
            assert run is not None
            assert run.lease_owner == text
            self._cancel(run_id)
        application = answer(lambda: DurableStackOptions(application_name=text).application_name)
        if not isinstance(application, Refused):
            kept = self.before[1]
            stored = self.stack.store.change_schedule(KEPT, lambda *_: replace(kept, application=text))
            assert stored is not None
            assert stored.application == text
            self.stack.store.change_schedule(KEPT, lambda *_: kept)
            self.before = self._untouched()

    def _refuses(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> bool:
        return isinstance(answer(call, *arguments, **keywords), Refused)

    def _claim(self, job_name: str, worker_name: str) -> list[Any]:
        claim = Claim(
            worker_name=worker_name,
            lease_token=uuid4(),
            job_names=[job_name],
            batch_size=10,
            lease_duration=timedelta(seconds=0),
        )
        return self.stack.store.claim_due_runs(claim).runs

    def _cancel(self, run_id: Any) -> None:
        """Its lease has expired, and a cancelled run is not claimed again."""
        self.stack.client.cancel_run(run_id)
        self._claim("nobody", worker_name="w")

    def close(self) -> None:
        if isinstance(self.stack.store, SqlStore) and self.stack.options.database_table_prefix:
            for table in ("job_runs", "job_run_attempts", "jobs", "workers", "schema_migrations"):
                name = self.stack.store.dialect.quoted(
                    f"{self.stack.options.database_table_prefix}durable_stack_{table}"
                )
                with suppress(DurableStackError), self.stack.store._connections.transaction() as tx:
                    tx.run(f"drop table {name}", {})
        self.stack.close()


def _schedule(job_name: str, now: datetime) -> Schedule:
    made = Schedule(job_name=job_name, cron_expression="0 0 1 1 *", seen_at=now, created_at=now, updated_at=now)
    return replace(made, application="shop")


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("victim")
    made = Victim() if request.param == "memory" else Victim(database_url=f"sqlite:///{folder}/runs.db")
    yield made
    made.close()


hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=6).map("".join)


@given(text=hostile)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_refused_or_kept_and_harms_nobody(victim: Victim, text: str) -> None:
    victim.attack(text)


@pytest.mark.parametrize("server", ["postgres", "mysql"])
def test_servers_are_not_harmed_by_text_either(request: pytest.FixtureRequest, server: str, table_prefix: str) -> None:
    url: str = request.getfixturevalue(f"{server}_dsn")
    victim = Victim(database_url=url, database_table_prefix=table_prefix)
    try:
        for text in CORPUS:
            victim.attack(text)
    finally:
        victim.close()


@pytest.mark.parametrize("text", [text for text in CORPUS if "\0" not in text], ids=range(len(CORPUS) - 1))
def test_the_command_is_not_impressed_by_its_arguments(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = ["--database-url", f"sqlite:///{tmp_path}/runs.db"]
    assert main([*url, "migrate"]) == 0
    commands = [
        *(["runs", command, text] for command in ("show", "cancel", "requeue", "stack")),
        *(["runs", "list", option, text] for option in ("--job", "--status", "--take")),
        *(["schedules", command, text] for command in ("enable", "disable", "run")),
        *(["schedules", "update", text, "0 0 * * *"], ["schedules", "update", "x", text, "--tz", text]),
        *(["enqueue", text], ["enqueue", "echo", text], ["enqueue", "x", "--in", text], ["enqueue", "x", "--at", text]),
        *(["cron", text], ["cron", "0 0 * * *", "--tz", text], ["--config", text, "doctor"], ["-a", text, "doctor"]),
        *(["--database-url", text, "runs", "count"], [text]),
    ]
    for arguments in commands:
        capsys.readouterr()
        code = main([*url, *arguments])
        told = capsys.readouterr()
        assert code in (0, 2, 3), (arguments, told.err)
        assert "Traceback" not in told.err
        assert all(line.isprintable() for line in (told.out + told.err).splitlines()), arguments
        if code:
            assert [line[:7] for line in told.err.splitlines()] == ["error: "], arguments
    assert main([*url, "runs", "count"]) == 0


@pytest.mark.parametrize(
    "prefix",
    [
        "ä",
        "\uff41",
        "İ",
        "\u0430",
        "a-b",
        'a"b',
        "a`b",
        "a]b",
        "a b",
        "a;b",
        "a\n",
        "a\0",
        "1a",
        "_a",
        "a" * 17,
        "%s",
        "{x}",
    ],
)
def test_a_prefix_is_ascii_or_none(prefix: str) -> None:
    assert isinstance(answer(DurableStackOptions, database_table_prefix=prefix), Refused)


@pytest.mark.parametrize(
    ("dialect", "length_max"),
    [(POSTGRES, 63), (MYSQL, 64), (SQLSERVER, 128), (SQLITE, 128)],
    ids=lambda each: str(each)[:9],
)
def test_with_the_longest_prefix_no_name_is_cut(dialect: Any, length_max: int) -> None:
    """One that is cut may be another's."""
    prefix = "p" * 16
    scripts = [each for version in range(1, SCHEMA_VERSION + 1) for each in statements_of(dialect, prefix, version)]
    statements = [*scripts, *(dialect.render(name, template, prefix) for name, template in TEMPLATES.items())]
    names = set(re.findall(rf"\b{prefix}\w*", "\n".join(statements)))
    assert len(names) > 5
    assert [name for name in names if len(name.encode()) > length_max] == []
