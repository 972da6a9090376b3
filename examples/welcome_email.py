"""An e-mail as a job: arguments with types, a retry when the mail server stutters, none when the address is wrong.

python -m durablestack.supervisor examples.welcome_email           in one terminal: executes runs
python -m examples.welcome_email ada@example.com                   in another: enqueues the mail, prints its run's id
"""

import os
import sys

from msgspec import Struct

from durablestack import DurableStack, JobContext, NoRetry, durable_job

stack = DurableStack(
    __name__,
    database_url=os.environ.get("DATABASE_URL", "sqlite:///welcome_email.db"),
    poll_interval_seconds=1,
)


class WelcomeEmail(Struct):
    to: str
    language: str = "en"  # came later: with a default, mails that were enqueued before it can still be sent


GREETINGS = {"en": "Welcome", "de": "Willkommen"}


@durable_job(
    name="send-welcome-email",
    max_attempts=5,
    retry_behavior="backoff",
    retry_initial_delay_seconds=10,
    timeout_seconds=60,
)
class SendWelcomeEmail:
    def execute(self, email: WelcomeEmail, context: JobContext) -> None:
        if "@" not in email.to:
            raise NoRetry(f"{email.to!r} is no address, and will be none at the next attempt")
        deliver(email.to, GREETINGS.get(email.language, GREETINGS["en"]), message_id=f"<{context.run_id}@example.com>")


def deliver(to: str, text: str, message_id: str) -> None:
    """Stands for your mail server. The id is the same at each attempt, so that it can tell a second copy."""
    print(f"to {to}: {text}! {message_id}")


if __name__ == "__main__":
    stack.migrate()
    for address in sys.argv[1:] or ["ada@example.com"]:
        print(stack.client.enqueue(SendWelcomeEmail, WelcomeEmail(to=address)))
