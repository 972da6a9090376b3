"""What does an idle supervisor hold, by children and start method, and what does one child cost?

    python -m benchmarks.memory [--children 1,5,10,20] [--start-methods forkserver,spawn] [--target MODULE]

PSS: a page that n processes share counts 1/n for each, so that the sum over all processes is what the machine has given
away. "one child": pages that nobody else has, which is what one child more costs. "after runs": once each child has
executed some. The application is the demonstration's.
"""

from __future__ import annotations

import rich_click as click

from benchmarks.bench import Store
from benchmarks.harness import Figures, Harness, benchmark
from benchmarks.records import Label
from benchmarks.worker import Role, Worker, until_done, worker

DEMO = "durablestack.supervisor.demo_jobs"
RUNS_PER_CHILD = 20
MIB = 1024 * 1024

UNITS = {
    "tree": "MiB PSS",
    "supervisor": "MiB PSS",
    "guard": "MiB PSS",
    "fork server": "MiB PSS",
    "children": "MiB PSS",
    "one child": "MiB of its own",
    "tree after runs": "MiB PSS",
    "one child after runs": "MiB of its own",
}


@benchmark(units=UNITS, repeat=3, stores=("sqlite", "postgres"))
@click.option("--children", default="1,5,10,20", show_default=True, help="Child processes.")
@click.option("--start-methods", default="forkserver,spawn", show_default=True, help="How children are started.")
@click.option("--target", default=DEMO, show_default=True, help="The application; it needs a job `burn-cpu`.")
def main(harness: Harness, children: str, start_methods: str, target: str) -> None:
    """Measure the memory of an idle supervisor and its children."""
    for store in (store for store in harness.stores if store.durable):
        for method in start_methods.split(","):
            for count in map(int, children.split(",")):
                labels: dict[str, Label] = {"store": store.name, "start method": method, "children": count}
                harness.case(labels, measure, store, method, count, target)
    harness.measure()


def measure(store: Store, start_method: str, children: int, target: str) -> Figures:
    with (
        store.stack(target) as stack,
        worker(stack, {**store.options, "start_method": start_method}, children=children, target=target) as supervisor,
    ):
        supervisor.until_ready()
        idle = _held(supervisor)
        runs = children * RUNS_PER_CHILD
        stack.client.enqueue_many("burn-cpu", [0.001] * runs)
        until_done(stack, runs, [supervisor])
        supervisor.until_ready()
        used = _held(supervisor)
    return {**idle, "tree after runs": used["tree"], "one child after runs": used["one child"]}


def _held(supervisor: Worker) -> dict[str, float]:
    memory = supervisor.memory()
    child = memory[Role.CHILD]
    return {
        "tree": sum(each.pss_bytes for each in memory.values()) / MIB,
        "supervisor": memory[Role.SUPERVISOR].pss_bytes / MIB,
        "guard": memory[Role.GUARD].pss_bytes / MIB,
        "fork server": memory[Role.FORK_SERVER].pss_bytes / MIB,
        "children": child.pss_bytes / MIB,
        "one child": child.own_bytes / max(1, child.processes) / MIB,
    }


if __name__ == "__main__":
    main()
