"""Arguments on their way to JSON and back: what fits, what does not, and what strangers may put there."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durablestack.errors import PayloadError
from durablestack.jobs.payloads import PayloadCodec

BYTES_MAX = 10_000


class Order(msgspec.Struct):
    number: int
    note: str | None = None


class StrictOrder(msgspec.Struct, forbid_unknown_fields=True):
    number: int


@dataclass
class Email:
    to: str
    at: datetime | None = None


class Address(TypedDict):
    street: str


class Point(NamedTuple):
    x: float
    y: float


class Color(Enum):
    RED = "red"


def codec(args_type: Any) -> PayloadCodec:
    return PayloadCodec("job", args_type, takes_args=True)


def there_and_back(args_type: Any, args: Any) -> Any:
    payload = codec(args_type).encode(args, BYTES_MAX)
    assert payload is not None
    return codec(args_type).decode(payload)


NOON = datetime(2030, 1, 2, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("args_type", "args"),
    [
        (Order, Order(5, "now")),
        (Email, Email("ada", NOON)),
        (Address, {"street": "Main"}),
        (Point, Point(1.5, 2.0)),
        (Color, Color.RED),
        (int, 5),
        (float, 0.1),
        (bool, True),
        (str, "näh 📮 \0 \u2028 \x7f"),
        (bytes, b"\0\xff"),
        (list[Order], [Order(1), Order(2)]),
        (dict[str, int], {"a": 1}),
        (tuple[int, str], (1, "a")),
        (set[int], {1, 2}),
        (datetime, NOON),
        (date, NOON.date()),
        (timedelta, timedelta(seconds=1.5)),
        (UUID, uuid4()),
        (Decimal, Decimal("1.10")),
        (Literal["a", "b"], "b"),
        (Order | None, None),
        (Order | None, Order(1)),
        (Any, None),
        (Any, {"a": [1, 2.5, "x", None, True]}),
        (int, 2**63 - 1),
        (int, -(2**63)),
        (int, 2**64),
        (Any, 10**30),
    ],
)
def test_arguments_come_back_as_they_went(args_type: Any, args: Any) -> None:
    back = there_and_back(args_type, args)
    assert back == args
    assert type(back) is type(args)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(JSON)
@settings(deadline=None)
def test_whatever_is_json_comes_back_as_it_went(value: Any) -> None:
    assert there_and_back(Any, value) == value


@given(st.text())
@settings(deadline=None)
def test_text_comes_back_as_it_went_or_is_refused(text: str) -> None:
    try:
        assert there_and_back(str, text) == text
    except PayloadError:
        assert any("\ud800" <= character <= "\udfff" for character in text)


@given(st.text())
@settings(deadline=None)
def test_whatever_stands_in_the_database_is_decoded_or_refused(payload: str) -> None:
    for args_type in (Order, dict[str, Any], Any):
        try:
            codec(args_type).decode(payload)
        except PayloadError:
            continue


# --- refused when enqueued


class Unencodable:
    pass


class RaisesOnEncode(dict[str, Any]):
    def items(self) -> Any:
        raise ValueError("not today")


def nested(depth: int, inner: Any = None) -> Any:
    value = inner
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("args_type", "args"),
    [
        (Order, {"number": "five"}),
        (Order, {"numbers": 5}),
        (Order, None),
        (Order, Email("ada")),
        (StrictOrder, {"number": 5, "color": "red"}),
        (Email, {"to": None}),
        (Address, {}),
        (int, "5"),
        (int, 5.5),
        (int, None),
        (str, 5),
        (UUID, "no uuid"),
        (datetime, "yesterday"),
        (Literal["a"], "b"),
    ],
)
def test_arguments_of_another_type_are_refused_and_their_content_is_not_told(args_type: Any, args: Any) -> None:
    with pytest.raises(
        PayloadError, match=r"^job 'job' takes .*, (which its arguments are not: |and got no arguments)"
    ) as refused:
        codec(args_type).encode(args, BYTES_MAX)
    assert "five" not in str(refused.value)


@pytest.mark.parametrize(
    "args",
    [
        Unencodable(),
        {"deep": [Unencodable()]},
        {(1, 2): 3},
        {None: 1},
        "lone \ud800",
        {"key \udfff": 1},
        10**5000,
        lambda: None,
        cyclic(),
        nested(100_000),
        1j,
    ],
    ids=lambda args: type(args).__name__,
)
def test_what_cannot_be_written_as_json_is_refused(args: Any) -> None:
    with pytest.raises(PayloadError, match=r"^arguments of job 'job' cannot be written as JSON: "):
        codec(Any).encode(args, BYTES_MAX)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "around",
    [
        lambda number: number,
        lambda number: [1, number],
        lambda number: {"a": {"b": (number,)}},
        lambda number: Point(1.0, number),
        lambda number: [None, {"a": number}],
        lambda number: nested(300, number),
    ],
)
def test_a_float_that_json_cannot_hold_is_refused_wherever_it_stands(
    around: Callable[[float], Any], number: float
) -> None:
    with pytest.raises(PayloadError, match="hold a float that is not finite; JSON has none"):
        codec(Any).encode(around(number), BYTES_MAX)


def test_a_float_that_json_cannot_hold_is_refused_where_null_would_be_legal() -> None:
    with pytest.raises(PayloadError, match="not finite"):
        codec(float | None).encode(float("nan"), BYTES_MAX)


def test_none_is_an_argument_where_null_is_legal_and_only_there() -> None:
    assert codec(Order | None).encode(None, BYTES_MAX) == "null"
    assert codec(Order | None).decode(None) is None
    with pytest.raises(PayloadError):
        codec(Order).decode(None)


def test_a_job_without_arguments_has_no_payload_and_takes_none() -> None:
    takes_none = PayloadCodec("job", None, takes_args=False)
    assert takes_none.encode(None, BYTES_MAX) is None
    assert takes_none.decode(None) is None
    with pytest.raises(PayloadError) as refused:
        takes_none.encode("secret", BYTES_MAX)
    assert str(refused.value) == "job 'job' takes no arguments, but got a value of type str"


def test_the_cap_counts_bytes_and_is_exact() -> None:
    assert codec(str).encode("é" * 4, 10) == '"éééé"'
    with pytest.raises(PayloadError, match=r"are 12 bytes of JSON; allowed are 10 \(option payload_bytes_max\)"):
        codec(str).encode("é" * 5, 10)


@pytest.mark.parametrize("depth", [10, 300, sys.getrecursionlimit() - 100, sys.getrecursionlimit(), 5_000])
def test_deep_nesting_is_stored_or_refused_and_what_is_stored_can_be_read(depth: int) -> None:
    for args in (nested(depth), nested(depth, 1.5)):
        try:
            payload = codec(Any).encode(args, 100_000)
        except PayloadError:
            assert depth > 300
        else:
            codec(Any).decode(payload)


# --- what may stand in the database


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "{",
        "nope",
        "{} {}",
        "'single'",
        '"\\ud800"',
        '"\ud800"',
        "[" * 100_000,
        '{"a":' * 50_000,
        '"\0"',
        "NaN",
        "Infinity",
        "1e999",
        "\ufeff{}",
        "01",
        "[1,]",
    ],
    ids=lambda payload: repr(payload)[:12],
)
def test_hostile_json_is_a_payload_error_and_no_crash(payload: str) -> None:
    with pytest.raises(PayloadError):
        codec(dict[str, Any]).decode(payload)


def test_the_last_of_two_equal_keys_wins() -> None:
    assert codec(Order).decode('{"number": 1, "number": 2}') == Order(2)


def test_fields_that_a_newer_application_wrote_are_passed_over() -> None:
    assert codec(Order).decode('{"number": 1, "color": "red"}') == Order(1)


def test_a_type_that_checks_itself_refuses_with_its_own_words() -> None:
    class Positive(msgspec.Struct):
        number: int

        def __post_init__(self) -> None:
            if self.number <= 0:
                raise ValueError("number must be positive")

    with pytest.raises(PayloadError, match="number must be positive"):
        codec(Positive).decode('{"number": 0}')
