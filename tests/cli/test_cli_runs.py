"""durablestack runs list, show, cancel, requeue, count"""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from cli_situations import claim_one, end

from durablestack import DurableStack, RunStatus
from durablestack.runs import EndedBy, Failed, Failure, Output, Succeeded, Usage

HOSTILE = "\x1b[2J\x1b]0;owned\x07 [red]not markup[/red] \u202egnp.exe \x9b31m\x7f"
ESCAPED = r"\x1b[2J\x1b]0;owned\x07 [red]not markup[/red] \u202egnp.exe \x9b31m\x7f"


def ids(ended) -> list[str]:
    """The run ids of a table, from top to bottom."""
    assert ended.code == 0, ended.err
    return [line.split()[0] for line in ended.lines[1:]]


def a_failed_run(stack: DurableStack, failure: Failure, output: Output = Output()) -> UUID:  # noqa: B008
    stack.client.enqueue("tidy-up")
    return end(stack, Failed(claim_one(stack).lease, failure, None, output))


# --- list


def test_list_shows_the_latest_first_a_line_per_run_uncut_and_plain(console, on_sqlite):
    run_ids = on_sqlite.client.enqueue_many("tidy-up", [None] * 3)
    ended = console("runs", "list")
    assert ids(ended) == [str(run_id) for run_id in reversed(run_ids)]
    assert "\x1b" not in ended.out
    assert "…" not in ended.out


def test_list_can_be_narrowed_by_status_by_job_and_in_length(console, on_sqlite):
    failed = a_failed_run(on_sqlite, Failure(error_type="ValueError", error_message="no"))
    email = on_sqlite.client.enqueue("send-email", {"to": "ada"})
    tidy_up = on_sqlite.client.enqueue("tidy-up")
    assert ids(console("runs", "list", "--status", "failed")) == [str(failed)]
    assert ids(console("runs", "list", "--job", "send-email")) == [str(email)]
    assert ids(console("runs", "list", "--job", "tidy-up", "--status", "pending")) == [str(tidy_up)]
    assert ids(console("runs", "list", "--take", 1)) == [str(tidy_up)]


def test_due_lists_what_is_due_now_the_earliest_first(console, on_sqlite):
    on_sqlite.client.schedule("tidy-up", run_at=datetime.now(UTC) + timedelta(hours=1))
    later = on_sqlite.client.schedule("tidy-up", run_at=datetime.now(UTC) - timedelta(hours=1))
    earlier = on_sqlite.client.schedule("tidy-up", run_at=datetime.now(UTC) - timedelta(hours=2))
    email = on_sqlite.client.schedule("send-email", {"to": "a"}, run_at=datetime.now(UTC) - timedelta(hours=3))
    assert ids(console("runs", "list", "--due")) == [str(email), str(earlier), str(later)]
    assert ids(console("runs", "list", "--due", "--job", "tidy-up", "--take", 1)) == [str(earlier)]


def test_an_empty_list_is_empty_on_standard_output(console, on_sqlite):
    ended = console("runs", "list")
    assert (ended.code, ended.out, ended.err) == (0, "", "no runs\n")
    assert console("runs", "list", "--json").document == []


def test_json_is_one_document_with_the_arguments_inside(console, on_sqlite):
    run_id = on_sqlite.client.enqueue("send-email", {"to": "Zoë"})
    (run,) = console("runs", "list", "--json").document
    assert run["id"] == str(run_id)
    assert run["payload"] == {"to": "Zoë"}
    assert datetime.fromisoformat(run["scheduled_for"]).utcoffset() == timedelta(0)


# --- show


def test_show_tells_all_about_a_run_that_failed(console, on_sqlite):
    failure = Failure(
        error_type="SegmentationFault", error_message="died", error_detail="line 1\nline 2", signal="SIGSEGV"
    )
    run_id = a_failed_run(on_sqlite, failure, Output("last words\n", "core dumped\n"))
    ended = console("runs", "show", run_id)
    assert ended.code == 0
    for expected in (str(run_id), "tidy-up", "failed", "1 of 1", "SegmentationFault: died", "SIGSEGV", "worker-7"):
        assert expected in ended.out
    assert "error detail:\n  line 1\n  line 2\n" in ended.out
    assert "end of standard output:\n  last words\n" in ended.out
    assert "end of standard error:\n  core dumped\n" in ended.out


def test_show_as_json_has_the_attempts(console, on_sqlite):
    run_id = a_failed_run(on_sqlite, Failure(error_type="ValueError", error_message="no"))
    document = console("runs", "show", run_id, "--json").document
    assert (document["status"], document["error_message"]) == ("failed", "no")
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["failed"]


def test_show_tells_how_the_process_of_an_attempt_ended_and_what_it_used(console, on_sqlite):
    failure = Failure(
        error_type="OutOfMemory",
        error_message="no",
        signal="SIGKILL",
        exit_code=-9,
        ended_by=EndedBy.KERNEL,
        usage=Usage(peak_memory_bytes=512 * 2**20, user_cpu_seconds=1.25, system_cpu_seconds=0.5),
        crashed=True,
    )
    run_id = a_failed_run(on_sqlite, failure)
    ended = console("runs", "show", run_id)
    *_, columns, attempt = [line for line in ended.lines if line]
    assert columns.endswith("ended by  signal   exit code  peak memory  CPU seconds")
    assert attempt.split()[-6:] == ["kernel", "SIGKILL", "-9", "512.0", "MiB", "1.75"]
    assert [line.split() for line in ended.lines if line.startswith("crashes")] == [["crashes", "1"]]
    document = console("runs", "show", run_id, "--json").document
    assert document["crash_count"] == 1
    (told,) = document["attempts"]
    assert (told["ended_by"], told["exit_code"], told["peak_memory_bytes"]) == ("kernel", -9, 512 * 2**20)
    assert (told["user_cpu_seconds"], told["system_cpu_seconds"]) == (1.25, 0.5)


def test_show_says_nothing_of_crashes_where_there_are_none(console, on_sqlite):
    run_id = a_failed_run(on_sqlite, Failure(error_type="ValueError", error_message="no"))
    ended = console("runs", "show", run_id)
    assert "crashes" not in ended.out
    assert ended.lines[-1].endswith("ValueError: no"), "what is not known is not told"


def test_what_a_job_wrote_cannot_command_the_terminal(console, on_sqlite):
    failure = Failure(error_type="E", error_message=HOSTILE, error_detail=HOSTILE)
    run_id = a_failed_run(on_sqlite, failure, Output(HOSTILE, HOSTILE + "\r\n" + HOSTILE))
    shown = console("runs", "show", run_id)
    assert shown.out.count(ESCAPED) == 6  # the message twice, the detail, the outputs in three lines
    for arguments in (("show", run_id), ("show", run_id, "--json"), ("list",), ("list", "--json")):
        out = console("runs", *arguments).out
        assert all(character == "\n" or character.isprintable() for character in out)


def test_json_keeps_what_a_job_wrote(console, on_sqlite):
    run_id = a_failed_run(on_sqlite, Failure(error_type="E", error_message=HOSTILE))
    assert console("runs", "show", run_id, "--json").document["error_message"] == HOSTILE


def test_what_a_job_wrote_cannot_pass_for_a_field_of_the_run(console, on_sqlite):
    forged = "\nerror detail:\nstatus  succeeded\n"
    run_id = a_failed_run(on_sqlite, Failure(error_type="E", error_message=forged), Output(forged))
    lines = console("runs", "show", run_id).lines
    assert [line for line in lines if line.startswith("status")] == [next(line for line in lines if "failed" in line)]
    assert "error detail:" not in lines


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_the_terminal_cannot_write_is_escaped_rather_than_an_error(process, on_sqlite, encoding):
    run_id = a_failed_run(on_sqlite, Failure(error_type="E", error_message="Zoë ☃"))
    ended = process("runs", "show", run_id, PYTHONIOENCODING=encoding)
    assert (ended.code, ended.err) == (0, "")
    assert ("Zoë ☃" if encoding == "utf-8" else r"Zo\xeb \u2603") in ended.out


def test_show_of_an_unknown_run_is_bad_input(console, on_sqlite):
    run_id = uuid4()
    ended = console("runs", "show", run_id)
    assert ended.code == 2
    assert str(run_id) in ended.sentence


# --- cancel, requeue, count


def test_cancel_says_for_each_run_what_became_of_it(console, on_sqlite):
    on_sqlite.client.enqueue("tidy-up")
    leased = claim_one(on_sqlite).id
    on_sqlite.client.enqueue("tidy-up")
    succeeded = end(on_sqlite, Succeeded(claim_one(on_sqlite).lease))
    pending, unknown = on_sqlite.client.enqueue("tidy-up"), uuid4()
    ended = console("runs", "cancel", pending, leased, succeeded, unknown)
    assert ended.code == 0
    assert ended.lines == [
        f"{pending} cancelled",
        f"{leased} was asked to stop",
        f"{succeeded} has ended before: succeeded",
        f"{unknown} is unknown",
    ]
    run = on_sqlite.queries.get_run(leased)
    assert run is not None
    assert run.cancel_requested_at is not None


def test_cancel_is_exit_code_2_if_there_was_nothing_to_cancel(console, on_sqlite):
    pending = on_sqlite.client.enqueue("tidy-up")
    assert console("runs", "cancel", pending).code == 0
    again = console("runs", "cancel", pending, uuid4())
    assert again.code == 2
    assert again.lines[0] == f"{pending} has ended before: cancelled"


def test_requeue_prints_the_new_ids(console, on_sqlite):
    failed = a_failed_run(on_sqlite, Failure(error_type="E", error_message="no"))
    pending = on_sqlite.client.enqueue("tidy-up")
    ended = console("runs", "requeue", failed, pending)
    assert ended.code == 0
    (new_id,) = ended.lines
    assert f"{pending} is pending" in ended.err
    run = on_sqlite.queries.get_run(UUID(new_id))
    assert run is not None
    assert (run.status, run.requeued_from) == (RunStatus.PENDING, failed)


def test_requeue_is_exit_code_2_if_there_was_nothing_to_requeue(console, on_sqlite):
    unknown = uuid4()
    ended = console("runs", "requeue", unknown)
    assert (ended.code, ended.out, ended.err) == (2, "", f"{unknown} is unknown\n")


def test_count_counts_every_status(console, on_sqlite):
    on_sqlite.client.enqueue_many("tidy-up", [None] * 2)
    a_failed_run(on_sqlite, Failure(error_type="E", error_message="no"))
    expected = {"pending": 2, "leased": 0, "succeeded": 0, "failed": 1, "cancelled": 0}
    assert console("runs", "count", "--json").document == expected
    lines = [line.split() for line in console("runs", "count").lines]
    assert lines == [["status", "runs"], *([status, str(number)] for status, number in expected.items())]


def test_runs_need_no_application(console, stack):
    for command in (["list"], ["count"], ["list", "--due"]):
        assert console("runs", *command, "--database-url", "sqlite:///runs.db").code == 0
