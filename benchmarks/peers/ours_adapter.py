"""This project, as its README has it: a module with jobs, and the supervisor started on it.

python ours_adapter.py install | worker | enqueue JSON | cancel ID
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from uuid import UUID

import hostile
from msgspec import Struct

from durablestack import DurableStack, durable_job

stack = DurableStack(__name__, database_url=os.environ["PEERS_DSN"])


class Work(Struct):
    key: str
    kind: str
    seconds: float


@durable_job(name="perform")
def perform(args: Work) -> None:
    hostile.perform(args.key, args.kind, args.seconds)


@durable_job(name="perform-patiently")
async def perform_patiently(args: Work) -> None:
    await hostile.perform_patiently(args.key, args.kind, args.seconds)


def main(command: str, *arguments: str) -> None:
    match command:
        case "install":
            stack.migrate()
        case "worker":
            os.chdir(Path(__file__).parent)
            supervisor = [sys.executable, "-m", "durablestack.supervisor", "ours_adapter", "--plain"]
            os.execv(sys.executable, supervisor)
        case "enqueue":
            works = [Work(**each) for each in json.loads(arguments[0])]
            print(json.dumps([str(_enqueue(work)) for work in works]))
        case "cancel":
            stack.client.cancel_run(UUID(arguments[0]))


def _enqueue(work: Work) -> UUID:
    return stack.client.enqueue(perform_patiently if work.kind == "patient" else perform, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
