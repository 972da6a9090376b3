"""A process that claims until nothing is left, and prints what it got: `claiming_process.py URL PREFIX`."""

import sys
from datetime import timedelta
from uuid import uuid4

from durablestack.options import DurableStackOptions
from durablestack.runs import Succeeded
from durablestack.stores.contract import Claim
from durablestack.stores.providers import open_store

CLAIM_BATCH_SIZE = 7


def main(database_url: str, table_prefix: str) -> None:
    store = open_store(DurableStackOptions(database_url=database_url, database_table_prefix=table_prefix))
    store.migrate()  # all of them at once
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        claim = Claim(
            worker_name="worker-1",
            lease_token=uuid4(),
            job_names=["send_email"],
            batch_size=CLAIM_BATCH_SIZE,
            lease_duration=timedelta(seconds=30),
        )
        runs = store.claim_due_runs(claim).runs
        if not runs:
            break
        store.record([Succeeded(run.lease) for run in runs])
        print(*(run.id for run in runs), flush=True)
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
