"""An application with jobs and without a database, for the console script to load."""

from msgspec import Struct

from durablestack import durable_job


class Email(Struct):
    to: str
    copies: int = 1


@durable_job(name="send-email")
def send_email(args: Email) -> None:
    pass


@durable_job(name="tidy-up", max_attempts=1)
def tidy_up() -> None:
    pass
