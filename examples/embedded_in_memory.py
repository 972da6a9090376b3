"""Everything in one process tree and nothing to install or keep: the in-memory store, for tests and tools.

python -m examples.embedded_in_memory
"""

import anyio

from durablestack import DurableStack, JobContext, durable_job
from durablestack.supervisor.embedded import supervise

stack = DurableStack(__name__, storage_provider="in_memory", max_concurrent_runs=2)


@durable_job(name="square")
def square(number: int, context: JobContext) -> None:
    print(f"{number} squared is {number**2}")


async def main() -> None:
    async with supervise(stack):
        run_ids = await stack.async_client.enqueue_many(square, range(10))
        for run_id in run_ids:
            while (run := stack.queries.get_run(run_id)) is None or not run.status.terminal:
                await anyio.sleep(0.01)
            print(run.status, (run.stdout_tail or "").strip())


if __name__ == "__main__":
    anyio.run(main)
