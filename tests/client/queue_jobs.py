"""The jobs that the tests of the client enqueue. Nobody executes them."""

from msgspec import Struct

from durablestack import JobContext, durable_job


class Email(Struct):
    to: str


@durable_job(name="send-email", max_attempts=5)
def send_email(args: Email, context: JobContext) -> None: ...


@durable_job
class Bill:
    def execute(self, args: int) -> None: ...


@durable_job
async def tidy() -> None: ...


def undeclared() -> None: ...
