"""Secrets do not leak by accident, and text that might hold one can be cleaned."""

import copy
import pickle
import time

import msgspec
import pytest

from durablestack.options import MASK, Secret, mask_secrets, redact


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret("hunter22")
    assert secret.reveal() == "hunter22"
    assert repr(secret) == str(secret) == f"{secret}" == f"{secret:>40}" == "%s" % secret == MASK  # noqa: UP031
    assert not isinstance(secret, str)


def test_secrets_compare_by_what_they_hold() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert {Secret("a"), Secret("a")} == {Secret("a")}
    assert not Secret("")
    assert copy.deepcopy([Secret("a")]) == [Secret("a")]


def test_a_secret_is_neither_pickled_nor_encoded() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret("hunter22"))
    with pytest.raises(TypeError):
        msgspec.json.encode(Secret("hunter22"))
    assert msgspec.json.encode(Secret("hunter22"), enc_hook=mask_secrets) == f'"{MASK}"'.encode()
    with pytest.raises(NotImplementedError):
        mask_secrets(object())


@pytest.mark.parametrize(
    "text",
    [
        "cannot connect to postgresql://me:hunter22@db:5432/orders",
        "cannot connect to postgresql://me:hun/ter22@hunter22@db/orders",
        'conninfo "postgresql://:hunter22@db/orders" refused',
        "https://hunter22@github.com/x",
        "Host=db;Password=hunter22;Database=x",
        "Host=db;Pwd = hunter22",
        'Host=db;PASSWORD="a;hunter22";Database=x',
        "host=db password='it\\'s hunter22' dbname=x",
        "Host=db;Password=two words hunter22;Database=x",
        "host=db sslpassword=hunter22 dbname=x",
        "{'password': 'hunter22'}",
        '{"client_secret": "hunter22", "host": "db"}',
    ],
)
def test_redact_removes_passwords_from_any_text(text: str) -> None:
    redacted = redact(text)
    assert "hunter22" not in redacted
    assert MASK in redacted


@pytest.mark.parametrize(
    "text",
    [
        "",
        'password authentication failed for user "me"',
        "https://durablestack.com/docs/@v1.0",
        "postgresql://localhost:5432/orders and me@example.com",
    ],
)
def test_redact_leaves_other_text_alone(text: str) -> None:
    assert redact(text) == text


def test_redact_keeps_what_helps() -> None:
    assert redact("no route to postgresql://me:pw@db:5432/orders") == f"no route to postgresql://{MASK}@db:5432/orders"
    assert redact("Host=db;Password=pw;Database=x") == f"Host=db;Password={MASK};Database=x"


def test_redact_removes_known_secrets_as_they_are_and_percent_encoded() -> None:
    text = "token p@ss/word, again p%40ss%2Fword"
    assert redact(text, [Secret("p@ss/word")]) == f"token {MASK}, again {MASK}"
    assert redact("a known text", ["known"]) == f"a {MASK} text"
    assert redact("an apple a day", [Secret("a"), Secret("")]) == "an apple a day"


@pytest.mark.parametrize(
    "piece", ["x://a:", "://", "@", "password=", "password='", 'password="', "pwd= ", "a", " ", "'"]
)
def test_redact_takes_linear_time(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    started = time.perf_counter()
    redact(text)
    assert time.perf_counter() - started < 2
