"""procrastinate, as its tutorial and its chapters on stalled jobs, retries and shutdown have it.

    python procrastinate_adapter.py install | worker | enqueue JSON | cancel ID

With PEERS_SETUP=recovery: the documented periodic task `retry_stalled_jobs` (each minute, where the documentation has
each tenth), tasks with `retry=3`, and workers with `--shutdown-graceful-timeout`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import hostile
import procrastinate

RECOVERY = os.environ.get("PEERS_SETUP") == "recovery"
RETRY = 3 if RECOVERY else False
CONCURRENCY = 5

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["PEERS_DSN"]))


@app.task(name="perform", retry=RETRY)
def perform(key: str, kind: str, seconds: float) -> None:
    hostile.perform(key, kind, seconds)


@app.task(name="perform_patiently", retry=RETRY)
async def perform_patiently(key: str, kind: str, seconds: float) -> None:
    await hostile.perform_patiently(key, kind, seconds)


if RECOVERY:

    @app.periodic(cron="* * * * *")
    @app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
    async def retry_stalled_jobs(context: procrastinate.JobContext, timestamp: int) -> None:
        for job in await app.job_manager.get_stalled_jobs():
            await app.job_manager.retry_job(job)


def main(command: str, *arguments: str) -> None:
    match command:
        case "install":
            with app.open():
                app.schema_manager.apply_schema()
        case "worker":
            os.chdir(Path(__file__).parent)
            os.environ["PYTHONPATH"] = os.getcwd()
            worker = [sys.executable, "-m", "procrastinate", "--app=procrastinate_adapter.app", "worker"]
            grace = ["--shutdown-graceful-timeout=10"] if RECOVERY else []
            os.execv(sys.executable, [*worker, f"--concurrency={CONCURRENCY}", *grace])
        case "enqueue":
            with app.open():
                print(json.dumps([str(_enqueue(work)) for work in json.loads(arguments[0])]))
        case "cancel":
            with app.open():
                app.job_manager.cancel_job_by_id(int(arguments[0]), abort=True)


def _enqueue(work: dict[str, Any]) -> int:
    task = perform_patiently if work["kind"] == "patient" else perform
    return task.defer(**work)


if __name__ == "__main__":
    main(*sys.argv[1:])
