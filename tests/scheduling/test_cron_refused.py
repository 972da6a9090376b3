"""What is no cron expression, what is said about it, and that nobody can make it costly."""

import sys
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice, product

import pytest

from durablestack.errors import ScheduleError
from durablestack.scheduling import cron
from durablestack.scheduling.cron import CronSchedule

MINUTE_TAKES = "it takes 0 to 59, a range 5-10, a step */5 or 5-20/5, or a list of them"

REFUSED = [
    # the number of fields
    ("", "cron expression '' has 0 fields; it takes 5 fields (minute hour day-of-month month day-of-week), or 6 with"),
    ("   ", "has 0 fields"),
    ("*", "has 1 fields"),
    ("0 2 * *", "has 4 fields"),
    ("0 0 2 * * * 2026", "has 7 fields; it takes 5 fields"),
    ("@daily", "'@daily' is a nickname, which is not supported; write '0 0 * * *'"),
    ("@HOURLY", "write '0 * * * *'"),
    (" @weekly ", "write '0 0 * * 0'"),
    ("@reboot", "'@reboot' is a nickname, which is not supported; it takes 5 fields"),
    ("@every 5m", "is a nickname"),
    # text
    ("0 2 * * *\n", "has characters that are not allowed; it takes ASCII letters, digits,"),
    ("0\t2 * * *", r"'0\t2 * * *' has characters that are not allowed"),
    ("0 2 * * *\0", r"'0 2 * * *\x00' has characters"),
    ("\u0661 2 * * *", r"'\u0661 2 * * *' has characters"),
    ("0\u00a02 * * *", "has characters"),
    ("\uff11 2 * * *", "has characters"),
    ("\ud800 2 * * *", "has characters"),
    ("0" * 257, "is 257 characters long; at most 256 are allowed"),
    ("0," * 1_000_000 + "0 2 * * *", "is 2000009 characters long"),
    (None, "a cron expression is text such as '0 2 * * *', not a NoneType"),
    (b"0 2 * * *", "not a bytes"),
    # values
    ("60 * * * *", f"cron expression '60 * * * *': minute '60' is not supported; {MINUTE_TAKES}"),
    ("-1 * * * *", "minute '-1' is not supported"),
    ("1.5 * * * *", "minute '1.5' is not supported"),
    ("0 24 * * *", "hour '24' is not supported; it takes 0 to 23"),
    ("0 0 0 * *", "day-of-month '0' is not supported; it takes 1 to 31"),
    ("0 0 32 * *", "day-of-month '32'"),
    ("0 0 * 0 *", "month '0' is not supported; it takes 1 to 12 or jan to dec"),
    ("0 0 * 13 *", "month '13'"),
    ("0 0 * january *", "month 'january'"),
    ("0 0 * mon *", "month 'mon'"),
    ("0 0 * * 8", "day-of-week '8' is not supported; it takes 0 to 7 or sun to sat (0 and 7 are Sunday)"),
    ("0 0 * * monday", "day-of-week 'monday'"),
    ("60 0 2 * * *", "second '60' is not supported"),
    ("9" * 200 + " * * * *", "is not supported"),
    # parts
    ("5,,7 * * * *", "minute '' is not supported"),
    (", * * * *", "minute '' is not supported"),
    ("5- * * * *", "minute '5-'"),
    ("5-7-9 * * * *", "minute '5-7-9'"),
    ("*-5 * * * *", "minute '*-5'"),
    ("5-* * * * *", "minute '5-*'"),
    ("** * * * *", "minute '**'"),
    ("5-61 * * * *", "minute '5-61'"),
    ("? * * * *", "minute '?'"),
    ("0 0 *,? * *", "day-of-month '?'"),
    # steps
    ("*/61 * * * *", "minute '*/61' has a step of 61; a step is 1 to 60"),
    ("0-59/0 * * * *", "minute '0-59/0' has a step of 0; a step is 1 to 60"),
    ("*/0 * * * *", "has a step of 0"),
    ("0 */25 * * *", "hour '*/25' has a step of 25; a step is 1 to 24"),
    ("0 0 * * */8", "day-of-week '*/8' has a step of 8; a step is 1 to 7"),
    ("*/ * * * *", "minute '*/'"),
    ("/5 * * * *", "minute '/5'"),
    ("*/-5 * * * *", "minute '*/-5'"),
    ("*/5/5 * * * *", "minute '*/5/5'"),
    ("*/" + "9" * 200 + " * * * *", "a step is 1 to 60"),
    # random and hashed
    ("R * * * *", "minute 'R' is not supported"),
    ("H H * * *", "minute 'H' is not supported"),
    ("H(0-30)/5 * * * *", "minute 'H(0-30)/5' is not supported"),
    ("0 R(2-4) * * *", "hour 'R(2-4)' is not supported"),
    # days
    ("0 0 LW * *", "day-of-month 'LW' is not supported; it takes 1 to 31, a range 1-15, a step */2, L (the last day)"),
    ("0 0 LW * *", "31W is the last weekday"),
    ("0 0 L-3 * *", "day-of-month 'L-3' is not supported"),
    ("0 0 15-L * *", "day-of-month '15-L' is not supported"),
    ("0 0 W15 * *", "day-of-month 'W15'"),
    ("0 0 0W * *", "day-of-month '0W'"),
    ("0 0 32W * *", "day-of-month '32W'"),
    ("0 0 15W,20 * *", "day-of-month '15W,20' is not supported"),
    ("0 0 1-15W * *", "day-of-month '1-15W'"),
    ("0 0 * * 5L", "day-of-week '5L' is not supported"),
    ("0 0 * * 5L", "5#3 (the third Friday of the month), L5 (the last Friday)"),
    ("0 0 * * L", "day-of-week 'L'"),
    ("0 0 * * Lfri", "day-of-week 'Lfri'"),
    ("0 0 * * L8", "day-of-week 'L8'"),
    ("0 0 * * 5#0", "day-of-week '5#0'"),
    ("0 0 * * 5#6", "day-of-week '5#6'"),
    ("0 0 * * #3", "day-of-week '#3'"),
    ("0 0 * * *#1", "day-of-week '*#1'"),
    ("0 0 * * 1-3#2", "day-of-week '1-3#2'"),
    ("0 0 * * mon,5#3", "day-of-week 'mon,5#3'"),
    ("L * * * *", "minute 'L'"),
    ("0 0 * L *", "month 'L'"),
    ("0 0 * 1#1 *", "month '1#1'"),
    # dates that do not exist
    ("0 0 30 2 *", "cron expression '0 0 30 2 *' never fires: no date matches its day and month fields"),
    ("30 2 30 2 *", "never fires"),
    ("0 0 31 4,6,9,11 *", "never fires"),
    ("0 0 31 4,6,9,11 */7", "never fires"),
    ("0 0 31 2 ?", "never fires"),
    ("0 0 15W * */6", "never fires"),  # a weekday that is a Saturday or a Sunday
    ("* * * 31 2 *", "never fires"),
]


@pytest.mark.parametrize(("expression", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused_with_one_sentence(expression: str, message: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        CronSchedule(expression)
    sentence = str(refused.value)
    assert message in sentence
    assert sentence.isprintable()
    assert len(sentence) < 900


@pytest.mark.parametrize("expression", ["0 0 30 2 mon", "0 0 31 4 1#1", "59 59 23 31 12 *", "0 0 31W 2 *"])
def test_what_can_be_reached_is_not_refused(expression: str) -> None:
    CronSchedule(expression)


# --- what it costs


class Work:
    """Counts the calls of Python functions, croniter's among them: the same on every machine, however busy."""

    def __init__(self) -> None:
        self.calls = 0

    def _count(self, frame: object, event: str, argument: object) -> None:
        self.calls += event == "call"

    def __enter__(self) -> "Work":
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


HOSTILE = [
    "0-59/0 * * * *",
    "*," * 123 + "* * * * *",
    "0-59," * 48 + "0-59 * * * *",
    " ".join(["0-59/7,1-58/3,*/2,3/4"] * 2 + ["0-23/5,*/3"] + ["1-31/4,*/5", "1-12/2", "0-7/2,1#1"]),
    " ".join(["0-59/7,1-58/3,*/2,3/4"] * 2 + ["0-23/5,*/3"] + ["1-31/4,*/5", "1-12/2", "0-7/2"]),
    "59 59 23 29 2 */7",
    "59 59 23 * 2 1#5,2#5,3#5",
    "59 59 23 */31 2 1#5",
    "0 0 15W * */6",
    "0 0 15W 2 */6",
    "0 0 31 2 1#5",
    "0 0 30 2 *",
    "0 0 31 4,6,9,11 *",
    "* * * 31 2 *",
    "," * 256,
    "9" * 256,
    "0 0 * * " + ",".join(f"{day}#{nth}" for day, nth in islice(product("01234567", "12345"), 40)),
]


@pytest.mark.parametrize("expression", HOSTILE)
def test_a_hostile_expression_is_answered_or_refused_with_little_work(expression: str) -> None:
    CronSchedule("* * * * *")  # croniter is imported
    cron._timetable.cache_clear()
    with Work() as work, suppress(ScheduleError):
        CronSchedule(expression).next_after(datetime(2073, 1, 1, tzinfo=UTC))
    assert 0 < work.calls < 60_000  # the most costly one makes 45,000 of them, in some 10 ms
