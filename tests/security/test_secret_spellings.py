"""A secret is known however it is written, and what is no secret stays readable."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durablestack.options import DurableStackOptions, redact

PASSWORD = "%^@'\"\\pass;=/?#é"
URL = f"postgresql://me:{quote(PASSWORD, safe='')}@db:5432/shop?sslpassword=of-the-key"
WAYS = {
    "plain": lambda text: text,
    "in a URL": lambda text: quote(text, safe=""),
    "in a dict": lambda text: repr({"k": text}),
    "in a dict beside other quotes": lambda text: repr({"k": f"\"'{text}"}),
    "in JSON": lambda text: json.dumps([text]),
    "in JSON that is not ASCII": lambda text: json.dumps([text], ensure_ascii=False),
    "in double quotes": lambda text: text.replace('"', '""'),
    "in single quotes": lambda text: text.replace("'", "''"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_secret_is_known_however_it_is_written(way) -> None:
    assert "pass" not in redact(f"it is {way(PASSWORD)} indeed", [PASSWORD])


@given(secret=st.text(st.characters(codec="utf-8"), min_size=4, max_size=12).map(lambda text: f"{text}kanari"))
def test_any_secret_is_known_however_it_is_written(secret: str) -> None:
    for name, way in WAYS.items():
        assert "kanari" not in redact(f"<{way(secret)}>", [secret]), name


def test_the_secrets_of_the_options_are_all_that_could_be_told_of_a_url() -> None:
    secrets = DurableStackOptions(database_url=URL).secrets()
    as_written = URL.replace("%5E", "%5e").partition("me:")[2].partition("@")[0]
    lower = DurableStackOptions(database_url=URL.replace("%5E", "%5e")).secrets()
    assert "pass" not in redact(f"{PASSWORD} {URL}", secrets)
    assert "pass" not in redact(as_written, lower)
    assert "of-the-key" not in redact("it is of-the-key", secrets)


def test_an_address_without_a_password_is_shown() -> None:
    for url in ("sqlite:///runs.db", "postgresql://db/shop"):
        assert redact(f"on {url}", DurableStackOptions(database_url=url).secrets()) == f"on {url}"
