"""FastAPI with jobs: requests enqueue, and a supervisor in the application's lifespan executes. Needs FastAPI.

uvicorn examples.fastapi_lifespan:app
curl -X POST localhost:8000/welcome/ada@example.com
curl localhost:8000/runs/<the id that came back>

A supervisor of its own, `python -m durablestack.supervisor examples.fastapi_lifespan`, does as well: then leave the
lifespan out.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from fastapi import FastAPI, HTTPException

from durablestack import DurableStack, durable_job
from durablestack.supervisor.embedded import supervise

stack = DurableStack(
    __name__,
    database_url=os.environ.get("DATABASE_URL", "sqlite:///fastapi.db"),
    max_concurrent_runs=2,
)


@durable_job(name="welcome")
def welcome(address: str) -> None:
    print(f"welcome, {address}")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with supervise(stack):
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/welcome/{address}", status_code=202)
async def post_welcome(address: str) -> dict[str, str]:
    return {"run_id": str(await stack.async_client.enqueue(welcome, address))}


@app.get("/runs/{run_id}")
def get_run(run_id: UUID) -> dict[str, Any]:  # not async: FastAPI calls it in a thread, where queries may block
    run = stack.queries.get_run(run_id)
    if run is None:
        raise HTTPException(404, "there is no such run")
    return {"status": run.status, "attempt": run.attempt, "output": run.stdout_tail}
