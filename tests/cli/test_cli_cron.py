"""durablestack cron explain"""

import pytest


def rows(ended) -> list[list[str]]:
    """Local time, UTC and note of each row of the table."""
    assert ended.code == 0, ended.err
    table = ended.lines[1 : ended.lines.index("")]
    return [[cell.strip() for cell in line.split("  ", 2)] for line in table]


def last_line(ended) -> str:
    assert ended.code == 0, ended.err
    return ended.lines[-1]


def explain(console, expression: str, start: str, zone: str = "America/New_York", count: int = 3):
    return console("cron", "explain", expression, "--tz", zone, "--from", start, "--count", count)


def test_it_shows_local_time_and_utc_of_the_next_times(console):
    ended = explain(console, "30 2 * * *", "2026-07-01T00:00", count=2)
    assert ended.lines[0].split() == ["local", "time", "UTC", "note"]
    assert [row[:2] for row in rows(ended)] == [
        ["Wed 2026-07-01 02:30:00-04:00", "2026-07-01 06:30:00Z"],
        ["Thu 2026-07-02 02:30:00-04:00", "2026-07-02 06:30:00Z"],
    ]
    assert "\x1b" not in ended.out


def test_a_skipped_time_is_noted(console):
    ended = explain(console, "30 2 * * *", "2026-03-07T00:00")
    assert [row[2:] for row in rows(ended)] == [
        [],
        ["02:30 does not exist on this day; fires at 03:00, the first valid instant after the gap"],
        [],
    ]
    assert last_line(ended).startswith("Fixed time: ")


def test_a_skipped_day_is_noted(console):
    ended = explain(console, "0 12 * * *", "2011-12-29T13:00", zone="Pacific/Apia", count=1)
    assert rows(ended)[0][0] == "Sat 2011-12-31 00:00:00+14:00"
    assert rows(ended)[0][2].startswith("2011-12-30 12:00 does not exist; fires at 00:00")


def test_a_skipped_hour_of_all_hours_is_noted(console):
    ended = explain(console, "15 * * * *", "2026-03-08T01:00")
    assert rows(ended)[1][2] == "the clock skips 02:00 to 03:00; the expression goes on with it"
    assert "with every hour named, it goes on with the clock" in last_line(ended)


def test_a_repeated_fixed_time_is_noted(console):
    ended = explain(console, "30 1 * * *", "2026-11-01T00:00", count=2)
    assert [row[2:] for row in rows(ended)] == [
        ["01:30 happens twice; a fixed time fires once, in the first pass"],
        [],
    ]


def test_both_passes_of_an_interval_expression_are_noted(console):
    ended = explain(console, "15 30 */1 * * *", "2026-11-01T00:45", count=3)
    assert [row[0][15:] for row in rows(ended)] == ["01:30:15-04:00", "01:30:15-05:00", "02:30:15-05:00"]
    assert [row[2:] for row in rows(ended)] == [
        ["01:30:15 happens twice; interval expression: fires in both passes, this is the first"],
        ["01:30:15 happens twice; interval expression: fires in both passes, this is the second"],
        [],
    ]
    assert last_line(ended).startswith("Interval expression ")


def test_an_interval_by_certain_hours_says_what_it_does_in_a_gap(console):
    ended = explain(console, "0 */2 * * *", "2026-03-08T01:00", count=1)
    assert (
        rows(ended)[0][2] == "02:00 does not exist on this day; fires at 03:00, the first valid instant after the gap"
    )
    assert "fire once, at the first valid instant after the gap" in last_line(ended)


@pytest.mark.parametrize(
    ("expression", "rule"),
    [
        ("0 0 13 * fri", "a day that matches either of them fires"),
        ("0 0 1-31 * fri", "a day that matches either of them fires"),
        ("0 0 */2 * fri", "a day has to match both"),
        ("0 0 13 * *", None),
        ("0 0 * * fri", None),
        ("0 0 ? * fri", None),
    ],
)
def test_the_rule_of_the_two_day_fields_is_told_where_both_are_set(console, expression, rule):
    ended = console("cron", "explain", expression)
    assert ("Day-of-month and day-of-week are both set" in ended.out) == (rule is not None)
    assert rule is None or rule in ended.lines[-2]
    assert last_line(ended) == "UTC has no clock changes: no time is skipped, none is repeated."


def test_it_shows_ten_times_from_now_on_in_utc(console):
    assert len(rows(console("cron", "explain", "* * * * *"))) == 10


def test_from_takes_an_instant_too(console):
    ended = explain(console, "0 12 * * *", "2026-07-01T16:00:00Z", count=1)
    assert rows(ended)[0][0] == "Thu 2026-07-02 12:00:00-04:00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("61 * * * *",), "cron expression '61 * * * *': minute '61' is not supported; it takes 0 to 59"),
        (("0 0 30 2 *",), "never fires"),
        (("\x1b[2J * * * *",), r"'\x1b[2J * * * *' has characters that are not allowed"),
        (("0 2 * * *", "--tz", "Central Standard Time"), "use the IANA id 'America/Chicago'"),
        (("0 2 * * *", "--tz", "Mars"), "time zone 'Mars' is not known"),
        (("0 2 * * *", "--from", "soon"), "--from: 'soon': it takes a time such as 2026-03-07T00:00"),
        (("0 2 * * *", "--from", "9999-12-31T23:00"), "does not fire after 9999-12-31"),
        (("0 2 * * *", "--count", "0"), "--count"),
        (("0", "2", "*", "*", "*"), "unexpected extra arguments"),
        ((), "EXPRESSION"),
    ],
)
def test_what_cannot_be_meant_is_bad_input(console, arguments, message):
    ended = console("cron", "explain", *arguments)
    assert ended.code == 2
    assert message in ended.sentence
