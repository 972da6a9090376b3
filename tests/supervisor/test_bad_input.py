"""Bad input: one clear sentence, an exit code, no secret, and nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from durablestack import RunStatus
from workers import Bench

MODULES = {
    "class_without_execute": "from durablestack import durable_job\n@durable_job\nclass Report: pass\n",
    "two_of_one_name": (
        "from durablestack import durable_job\n@durable_job(name='report')\ndef a() -> None: pass\n"
        "@durable_job(name='report')\ndef b() -> None: pass\n"
    ),
    "no_attempts": "from durablestack import durable_job\n@durable_job(max_attempts=0)\ndef a() -> None: pass\n",
    "no_jobs": "answer = 42\n",
    "broken": "import does_not_exist_anywhere\n",
    "raises": "raise ValueError('at import')\n",
    "leaves": "import sys; sys.exit(5)\n",
    "no_such_cron": ("from durablestack import recurring_job\n@recurring_job('0 2 * *')\ndef report() -> None: pass\n"),
    "no_such_zone": (
        "from durablestack import recurring_job\n"
        "@recurring_job('0 2 * * *', time_zone='Central Standard Time')\ndef report() -> None: pass\n"
    ),
    "fine": "from durablestack import durable_job\n@durable_job\ndef fine() -> None: pass\n",
}


def supervisor(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "durablestack.supervisor", *arguments, "--plain"],
        cwd=folder,
        env={**os.environ, "DURABLESTACK__DATABASE_URL": f"sqlite:///{folder}/runs.db", **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("missing_module", ["missing_module", "cannot be found"]),
        ("fine:nothing", ["fine:nothing", "no DurableStack"]),
        ("not a module", ["'not a module'", "dotted name"]),
        ("broken", ["broken", "does_not_exist_anywhere"]),
        ("raises", ["raises", "ValueError: at import", "line 1"]),
        ("leaves", ["leaves", "sys.exit(5)"]),
        ("class_without_execute", ["Report", "execute(self, args, context)"]),
        ("two_of_one_name", ["'report'", "two_of_one_name.a", "two_of_one_name.b"]),
        ("no_attempts", ["max_attempts is 0", "1 or more"]),
        ("no_such_cron", ["'0 2 * *'", "4 fields"]),
        ("no_such_zone", ["'Central Standard Time'", "America/Chicago"]),
        ("no_jobs", ["no_jobs", "@durable_job"]),
    ],
)
def test_an_application_that_cannot_be_one_is_refused_in_a_sentence(
    tmp_path: Path, target: str, words: list[str]
) -> None:
    done = supervisor(tmp_path, target)
    assert done.returncode == 2
    assert_one_sentence(done, words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"DURABLESTACK__BATCH_SIZE": "many"}, ["batch_size", "many"]),
        ({"DURABLESTACK__BATCH_SIZE": "0"}, ["batch_size", "0", "1"]),
        ({"DURABLESTACK__BATCHSIZZE": "5"}, ["BATCHSIZZE", "batch_size"]),
        ({"DURABLESTACK__LEASE_DURATION_SECONDS": "0.1"}, ["lease_duration_seconds", "0.1", "1"]),
        ({"DURABLESTACK__DATABASE_TABLE_PREFIX": "prod-"}, ["database_table_prefix", "prod-"]),
        ({"DURABLESTACK__DATABASE_URL": "oracle://x:geheim@y/z"}, ["oracle"]),
        ({"DURABLESTACK__EVENTING__CLIENT_SECRET": "geheim"}, ["client_secret", "tenant_id"]),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_in_a_sentence(
    tmp_path: Path, settings: dict[str, str], words: list[str]
) -> None:
    done = supervisor(tmp_path, "fine", **settings)
    assert done.returncode == 2
    assert_one_sentence(done, words)


def test_an_unreachable_database_is_told_at_once_and_without_its_password(tmp_path: Path) -> None:
    done = supervisor(tmp_path, "fine", DURABLESTACK__DATABASE_URL="postgresql://me:geheim@127.0.0.1:1/shop")
    assert done.returncode == 3
    assert_one_sentence(done, ["postgresql://127.0.0.1:1/shop", "refused"])


def test_a_folder_that_is_not_there_is_told_with_its_path(tmp_path: Path) -> None:
    done = supervisor(tmp_path, "fine", DURABLESTACK__DATABASE_URL=f"sqlite:///{tmp_path}/nowhere/runs.db")
    assert done.returncode == 3
    assert_one_sentence(done, ["nowhere/runs.db"])


def test_missing_tables_are_told_with_the_command_that_makes_them(tmp_path: Path) -> None:
    done = supervisor(tmp_path, "fine", "--no-migrate")
    assert done.returncode == 3
    assert_one_sentence(done, ["durable_stack_", "durablestack migrate"])


def test_no_target_at_all_is_told_with_an_example(tmp_path: Path) -> None:
    done = supervisor(tmp_path)
    assert done.returncode == 2
    assert "examples.quickstart" in done.stderr + done.stdout


def assert_one_sentence(done: subprocess.CompletedProcess[str], words: list[str]) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "geheim" not in done.stderr + done.stdout
    for word in words:
        assert word in errors[0]


def test_a_payload_that_no_longer_fits_the_job_fails_its_run_for_good_and_nothing_else(sqlite_bench: Bench) -> None:
    from durablestack.ids import new_run_id
    from durablestack.runs import NewRun

    payloads = ['{"seconds": "soon"}', "not json", "[" * 100_000, None]
    runs = [NewRun(id=new_run_id(), job_name="sleeps", payload=payload, max_attempts=3) for payload in payloads]
    sqlite_bench.stack.store.enqueue(runs)
    sqlite_bench.worker()
    for new in runs:
        run = sqlite_bench.until(new.id, RunStatus.FAILED)
        assert (run.attempt, run.error_type) == (1, "durablestack.errors.PayloadError")
    assert sqlite_bench.until(sqlite_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1


def test_the_jobs_module_is_found_from_the_folder_that_the_command_is_given_in(tmp_path: Path) -> None:
    done = supervisor(tmp_path, "no_jobs")
    assert "cannot be found" not in done.stderr
