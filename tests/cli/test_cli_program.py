"""How the script is started, what it says when it cannot go on, and that it keeps secrets."""

import os
import pty
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
from cli_situations import PASSWORD, unreachable_url

from durablestack import DurableStack


def test_help_names_the_commands_and_the_exit_codes(console):
    ended = console("--help")
    assert ended.code == 0
    assert all(word in ended.out for word in ("migrate", "enqueue", "runs", "doctor", "--app", "Exit codes"))


@pytest.mark.parametrize("module", ["durablestack", "durablestack.supervisor"])
def test_both_programs_tell_their_version(module):
    told = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout) == (0, f"durablestack, version {version('durablestack')}\n")


def test_without_a_command_there_is_help_and_exit_code_2(process):
    ended = process()
    assert ended.code == 2
    assert "Usage" in ended.out + ended.err


def test_python_dash_m_is_the_same(folder):
    command = [sys.executable, "-m", "durablestack", "runs", "list"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no database is named")


@pytest.mark.parametrize("command", [("migrate",), ("runs", "list"), ("runs", "count")])
def test_without_a_database_a_command_says_how_to_name_one(console, command):
    ended = console(*command)
    assert ended.code == 2
    assert "--database-url" in ended.sentence


def test_shared_options_stand_before_or_after_the_command(console, stack):
    url = "sqlite:///runs.db"
    assert console("--database-url", url, "runs", "count").code == 0
    assert console("runs", "--database-url", url, "count").code == 0
    assert console("runs", "count", "--database-url", url).code == 0
    assert console("-a", "cli_jobs", "enqueue", "tidy-up", "--database-url", url).code == 0
    assert console("enqueue", "tidy-up", "--database-url", url, "-a", "cli_jobs").code == 0


def test_the_application_comes_from_the_current_folder(process, folder):
    (folder / "shop.py").write_text(
        "from durablestack import DurableStack, durable_job\n"
        "stack = DurableStack(__name__, database_url='sqlite:///shop.db')\n"
        "@durable_job(name='pack')\n"
        "def pack() -> None: ...\n"
    )
    assert process("-a", "shop", "migrate").code == 0
    assert process("--app", "shop:stack", "enqueue", "pack").code == 0
    listed = process("runs", "list", DURABLESTACK_APP="shop,cli_jobs")
    assert listed.code == 0
    assert "pack" in listed.out


def test_the_database_comes_from_the_file_of_options(console, folder, stack):
    (folder / "durablestack.toml").write_text('database_url = "sqlite:///runs.db"\n')
    assert console("runs", "count").code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-a", "no_such_module", "doctor"), "no_such_module"),
        (("-a", "not-a-name", "runs", "list"), "not-a-name"),
        (("-a", "cli_jobs:nothing", "runs", "list"), "nothing"),
        (("--database-url", "hello", "migrate"), "database_url cannot be read"),
        (("--database-url", "oracle://db/x", "migrate"), "is not one of the schemes"),
        (("runs", "list", "--status", "sleeping"), "sleeping"),
        (("runs", "list", "--take", "0"), "0"),
        (("runs", "list", "--due", "--status", "failed"), "--due"),
        (("runs", "show", "42"), "42"),
        (("runs", "cancel"), "RUN_ID"),
        (("runs", "dance"), "dance"),
        (("migrate", "--sideways"), "--sideways"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(console, arguments, expected):
    ended = console(*arguments)
    assert ended.code == 2
    assert expected in ended.sentence


def test_a_module_that_fails_to_import_is_bad_input(console, folder):
    (folder / "broken_shop.py").write_text("1 / 0\n")
    ended = console("-a", "broken_shop", "doctor")
    assert ended.code == 2
    assert "ZeroDivisionError" in ended.sentence


def test_what_is_unexpected_shows_its_story_without_secrets_and_is_exit_code_1(console, on_sqlite, monkeypatch):
    monkeypatch.setenv("DURABLESTACK__EVENTING__CLIENT_SECRET", PASSWORD)
    monkeypatch.setenv("DURABLESTACK__EVENTING__TENANT_ID", "shop")

    def explode(self):
        raise RuntimeError(f"the roof fell in, with {PASSWORD}")

    monkeypatch.setattr(type(on_sqlite.store), "count_runs", explode)
    ended = console("runs", "count")
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert "the roof fell in" in ended.err
    assert PASSWORD not in ended.err


@pytest.mark.parametrize("command", [("runs", "list"), ("migrate",), ("enqueue", "tidy-up")])
def test_a_database_that_cannot_be_reached_is_exit_code_3_soon_and_without_its_password(process, command):
    begun = time.monotonic()
    ended = process("-a", "cli_jobs", "--database-url", unreachable_url(), *command)
    assert ended.code == 3
    assert "127.0.0.1" in ended.sentence
    assert PASSWORD not in ended.err
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("command", [("runs", "list"), ("runs", "count"), ("enqueue", "tidy-up")])
def test_who_only_looks_does_not_make_a_database(console, folder, command):
    ended = console("-a", "cli_jobs", "--database-url", "sqlite:///elsewhere.db", *command)
    assert ended.code == 3
    assert "durablestack migrate" in ended.sentence
    assert not (folder / "elsewhere.db").exists()


def test_missing_tables_are_exit_code_3_and_name_the_remedy(console, folder):
    (folder / "empty.db").touch()
    ended = console("--database-url", "sqlite:///empty.db", "runs", "list")
    assert ended.code == 3
    assert "durablestack migrate" in ended.sentence


def test_a_file_that_is_no_database_is_exit_code_3(console, folder):
    (folder / "notes.db").write_text("not a database, but a long enough text about something else" * 20)
    ended = console("--database-url", "sqlite:///notes.db", "runs", "list")
    assert ended.code == 3
    assert "notes.db" in ended.sentence


@pytest.mark.parametrize(
    "arguments",
    [
        ("migrate", f"postgresql://ada:{PASSWORD}@db/orders"),
        (f"postgresql://ada:{PASSWORD}@db/orders",),
        ("--database-url", f"postgresql://ada:{PASSWORD}@db:no/orders", "migrate"),
        ("--database-url", f"postgresql://ada:{PASSWORD}", "--app", f"ada:{PASSWORD}@db", "migrate"),
        ("--database-url", f"Host=db;Password={PASSWORD}", "migrate"),
    ],
)
def test_a_password_in_the_wrong_place_is_not_repeated(console, arguments):
    ended = console(*arguments)
    assert ended.code == 2
    assert ended.sentence
    if "--app" not in arguments:  # a target is no place for a password, and not known to be one
        assert PASSWORD not in ended.err


def on_a_terminal(*arguments: str, **environment: str) -> str:
    ours, theirs = pty.openpty()
    command = [Path(sys.executable).with_name("durablestack"), *arguments]
    here = str(Path(__file__).parent)
    env = {**os.environ, "PYTHONPATH": here, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    with subprocess.Popen(command, stdout=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(ours, 65_536):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


def test_a_terminal_gets_colours_unless_no_color_or_a_dumb_one_is_asked_for(on_sqlite: DurableStack):
    on_sqlite.client.cancel_run(on_sqlite.client.enqueue("tidy-up"))
    assert "\x1b[" in on_a_terminal("runs", "list", NO_COLOR="")
    assert "\x1b[" in on_a_terminal("doctor", NO_COLOR="")
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = on_a_terminal("runs", "list", **environment)
        assert "\x1b" not in shown
        assert "cancelled" in shown


def test_a_reader_that_leaves_early_is_no_error(on_sqlite: DurableStack, folder: Path):
    on_sqlite.client.enqueue_many("tidy-up", [None] * 1000)
    script = Path(sys.executable).with_name("durablestack")
    command = f"{script} runs list --take 1000 --json | head -n 1; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, env=env)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[\n", "")
