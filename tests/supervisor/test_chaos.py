"""Everything goes wrong for a while, and then everything that was promised has held: see docs/chaos.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SEED_OF_EVERY_DAY = 3


def chaos(*arguments: str) -> None:
    """The nemesis and the judge as a user runs them, with servers of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DURABLESTACK__")}
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *arguments],
        cwd=ROOT,
        env={**environment, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.timeout(300)
def test_a_minute_of_chaos_loses_nothing_and_does_nothing_twice(postgres_dsn: str) -> None:
    chaos("--seed", str(SEED_OF_EVERY_DAY), "--seconds", "60", "--store", "postgres")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kinds_of_bad_weather_on_postgres_lose_nothing(postgres_dsn: str) -> None:
    chaos("--seeds", "1-20", "--seconds", "60", "--store", "postgres")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_kinds_of_bad_weather_on_mysql_lose_nothing(mysql_dsn: str) -> None:
    chaos("--seeds", "1-10", "--seconds", "60", "--store", "mysql")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_kinds_of_bad_weather_on_sqlite_lose_nothing() -> None:
    chaos("--seeds", "1-10", "--seconds", "60", "--store", "sqlite")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_half_an_hour_of_chaos_on_postgres_loses_nothing(postgres_dsn: str) -> None:
    chaos("--seed", str(SEED_OF_EVERY_DAY), "--seconds", "1800", "--store", "postgres")


def test_a_schedule_can_be_seen_before_it_is_played() -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--schedule", "--seed", "5", "--seconds", "30"]
    shown = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert shown[0] == shown[1]
    assert "not injected: clock steps" in shown[0]
