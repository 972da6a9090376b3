"""Text from strangers, made fit for a database."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durablestack.text import clean


@given(st.text(), st.integers(10, 200))
@settings(deadline=None)
def test_what_was_cleaned_is_bounded_and_can_be_stored(text: str, length_max: int) -> None:
    cleaned = clean(text, length_max)
    assert len(cleaned) <= length_max
    assert "\0" not in cleaned
    cleaned.encode("utf-8")
    assert clean(cleaned, length_max) == cleaned


@pytest.mark.parametrize("text", ["", "plain", "näh 📮", "x" * 20])
def test_what_is_fit_stays_as_it_is(text: str) -> None:
    assert clean(text, 20) == text


def test_what_is_too_long_keeps_its_beginning_and_its_end() -> None:
    cut = clean("begin" + "." * 1_000 + "end", 60)
    assert len(cut) == 60
    assert cut.startswith("begin")
    assert cut.endswith("end")
    assert " … " in cut


def test_nul_and_lone_surrogates_are_replaced_one_for_one() -> None:
    assert clean("a\0b\ud800c", 20) == "a␀b?c"
