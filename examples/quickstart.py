"""A first job, on SQLite in the current folder, or on the database that DATABASE_URL names.

python -m durablestack.supervisor examples.quickstart      in one terminal: executes runs
python -m examples.quickstart enqueue 20                   in another: enqueues 20 of them, and waits
"""

import os
import sys
import time

from msgspec import Struct

from durablestack import DurableStack, JobContext, RunStatus, durable_job

stack = DurableStack(
    __name__,
    database_url=os.environ.get("DATABASE_URL", "sqlite:///quickstart.db"),
    poll_interval_seconds=1,
)


class Range(Struct):
    start: int
    stop: int


@durable_job(name="count-primes", timeout_seconds=60)
def count_primes(args: Range, context: JobContext) -> None:
    """Burns a core for a moment; its supervisor and its neighbours do not notice."""
    primes = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(args.start, 2), args.stop))
    print(f"{primes} primes between {args.start} and {args.stop}, at attempt {context.attempt}")


def enqueue(count: int) -> None:
    stack.migrate()
    step = 20_000
    run_ids = stack.client.enqueue_many(count_primes, [Range(i * step, (i + 1) * step) for i in range(count)])
    print(f"{count} runs enqueued; waiting for a supervisor to execute them")
    open_runs = set(run_ids)
    while open_runs:
        for run_id in list(open_runs):
            run = stack.queries.get_run(run_id)
            if run is not None and run.status.terminal:
                open_runs.discard(run_id)
                output = run.stdout_tail or run.error_message or ""
                print(f"{count - len(open_runs):4} {run.status:10} {output.strip()}", flush=True)
        time.sleep(0.1)
    succeeded = sum(stack.queries.get_run(i).status is RunStatus.SUCCEEDED for i in run_ids)  # type: ignore[union-attr]
    print(f"{succeeded} of {count} runs done")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["enqueue", number] if number.isdigit():
            enqueue(int(number))
        case _:
            sys.exit(__doc__)
