"""A web application that executes its own runs: the supervisor lives in the application's event loop,
its children are processes of their own. FastAPI takes the same `lifespan`. Needs Starlette and uvicorn.

uvicorn examples.embedded_starlette:app
curl -X POST localhost:8000/reports/2026
curl localhost:8000/runs/<the id that came back>
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from durablestack import DurableStack, JobContext, durable_job
from durablestack.supervisor.embedded import supervise

stack = DurableStack(
    __name__,
    database_url=os.environ.get("DATABASE_URL", "sqlite:///embedded.db"),
    max_concurrent_runs=2,
)


@durable_job(name="write-report", timeout_seconds=300)
def write_report(year: int, context: JobContext) -> None:
    print(f"the report of {year}, attempt {context.attempt}")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with supervise(stack):
        yield


async def post_report(request: Request) -> JSONResponse:
    run_id = await stack.async_client.enqueue(write_report, int(request.path_params["year"]))
    return JSONResponse({"run_id": str(run_id)}, status_code=202)


async def get_run(request: Request) -> JSONResponse:
    run = await to_thread.run_sync(stack.queries.get_run, UUID(request.path_params["run_id"]))
    if run is None:
        return JSONResponse({"error": "there is no such run"}, status_code=404)
    return JSONResponse({"status": run.status, "attempt": run.attempt, "output": run.stdout_tail})


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/reports/{year:int}", post_report, methods=["POST"]),
        Route("/runs/{run_id}", get_run),
    ],
)
