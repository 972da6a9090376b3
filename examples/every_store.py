"""The same job on each database: only the URL differs. Executes three runs there, and says how they went.

python -m examples.every_store                             in memory, and on SQLite
python -m examples.every_store postgresql://… mysql://…    on these databases; mssql://… as well
"""

import sys

import anyio

from durablestack import DurableStack, durable_job
from durablestack.supervisor.embedded import supervise


@durable_job(name="square")
def square(number: int) -> None:
    print(number**2)


async def try_out(database_url: str | None) -> None:
    """None: in memory, where runs are as long as no database is named."""
    with DurableStack(__name__, database_url=database_url, max_concurrent_runs=2) as stack:
        async with supervise(stack):  # makes the tables, too
            answers = []
            for run_id in await stack.async_client.enqueue_many(square, [1, 2, 3]):
                while (run := stack.queries.get_run(run_id)) is None or not run.status.terminal:
                    await anyio.sleep(0.02)
                answers.append((run.stdout_tail or run.error_message or "").strip())
    print(f"{stack.options.describe()['database']}: {', '.join(answers)}", flush=True)


async def main() -> None:
    database_urls: list[str | None] = [*sys.argv[1:]]
    for database_url in database_urls or [None, "sqlite:///every_store.db"]:
        await try_out(database_url)


if __name__ == "__main__":
    anyio.run(main)
