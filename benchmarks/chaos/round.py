"""One chaos run: a scene is set, the nemesis strikes, everything heals, the judge speaks."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks.chaos.database import Database
from benchmarks.chaos.faults import Nemesis
from benchmarks.chaos.mariadb_server import MariaDb
from benchmarks.chaos.postgres_server import Postgres
from benchmarks.chaos.records import read_attempts, read_changes, read_executions, read_intents, read_rows, read_said
from benchmarks.chaos.scene import SETTINGS, Scene
from benchmarks.chaos.schedule import Fault, Store
from benchmarks.chaos.sqlite_file import SqliteFile
from benchmarks.chaos_jobs import boottime
from benchmarks.history import History, Verdict
from benchmarks.judge import judge
from durablestack import RunStatus
from durablestack.errors import StoreError
from mariadb import start_mariadb
from servers import start_postgres

TICK_SECONDS = 0.02
CLIENTS = 2
CLIENTS_STOP_WITHIN_SECONDS = 20.0
SUPERVISORS_STOP_WITHIN_SECONDS = 25.0
ALL_ENDED_WITHIN_SECONDS = 60.0
WARM_UP_WITHIN_SECONDS = 60.0
LEFT_BEHIND_SECONDS = 5.0


class Weather(Struct, frozen=True, kw_only=True):
    """What one chaos run is to be like. `rate`: enqueues per second, of all clients."""

    seed: int
    seconds: float
    store: Store
    schedule: Sequence[Fault]
    supervisors: int
    rate: float


class Report(Struct, frozen=True, kw_only=True):
    """What a chaos run has shown. `kept` is where its files are, if they were kept."""

    seed: int
    store: Store
    seconds: float
    struck: dict[str, int]
    skipped: dict[str, int]
    healed_seconds: float
    verdict: Verdict
    kept: str | None = None

    @property
    def holds(self) -> bool:
        return not self.verdict.violations


def chaos_round(weather: Weather, *, keep: Path | None, told: Callable[[float, str], None]) -> Report:
    """Everything it leaves behind is removed, unless it is to be kept or a rule was broken."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{weather.seed}-", dir=keep))
    folder.chmod(0o755)
    history, nemesis, healed_seconds = _played(folder, weather, told)
    verdict = judge(history)
    kept = keep is not None or bool(verdict.violations)
    if kept:
        (folder / "history.json").write_bytes(msgspec.json.encode(history))
        (folder / "verdict.json").write_bytes(msgspec.json.format(msgspec.json.encode(plain_verdict(verdict))))
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return Report(
        seed=weather.seed,
        store=weather.store,
        seconds=weather.seconds,
        struck=dict(Counter(each.kind for each in nemesis.disturbances)),
        skipped=dict(Counter(nemesis.skipped)),
        healed_seconds=healed_seconds,
        verdict=verdict,
        kept=str(folder) if kept else None,
    )


def _played(folder: Path, weather: Weather, told: Callable[[float, str], None]) -> tuple[History, Nemesis, float]:
    database = _open_database(weather.store, folder)
    try:
        scene = Scene(
            folder,
            database,
            seed=weather.seed,
            supervisors=weather.supervisors,
            clients=CLIENTS,
            rate=weather.rate,
        )
        try:
            scene.open()
            nemesis = Nemesis(scene)
            _warm_up(scene)
            _torment(scene, nemesis, weather, told)
            healed_seconds = _heal(scene, nemesis, told)
            history = _read(scene, nemesis)
        finally:
            scene.close()
    finally:
        database.close()
    return history, nemesis, healed_seconds


def _open_database(store: Store, folder: Path) -> Database:
    match store:
        case Store.SQLITE:
            return SqliteFile(folder)
        case Store.POSTGRES:
            return Postgres(start_postgres())
        case Store.MYSQL:
            # with less, a commit that was acknowledged is not in the kernel's hands
            return MariaDb(start_mariadb({"innodb-flush-log-at-trx-commit": "1"}))


def _warm_up(scene: Scene) -> None:
    """The first faults are to find somebody at work."""
    deadline = boottime() + WARM_UP_WITHIN_SECONDS
    while boottime() < deadline and not any((scene.folder / "executions").iterdir()):
        scene.tick()
        time.sleep(TICK_SECONDS)


def _torment(scene: Scene, nemesis: Nemesis, weather: Weather, told: Callable[[float, str], None]) -> None:
    began_at = boottime()
    to_come = list(weather.schedule)
    while (now := boottime() - began_at) < weather.seconds:
        nemesis.let_go()
        while to_come and to_come[0].at <= now:
            fault = to_come.pop(0)
            told(now, f"{fault.kind} {fault.number} for {fault.seconds:.1f} s")
            nemesis.strike(fault)
        scene.tick()
        time.sleep(TICK_SECONDS)


def _heal(scene: Scene, nemesis: Nemesis, told: Callable[[float, str], None]) -> float:
    """Let everything be well, and wait until all runs have ended; return how long that took."""
    began_at = boottime()
    nemesis.heal()
    told(boottime() - began_at, "all is healed")
    scene.stop_clients(CLIENTS_STOP_WITHIN_SECONDS)
    healed_at = boottime()
    told(healed_at - began_at, "the clients have stopped")
    while not _all_ended(scene) and boottime() < healed_at + ALL_ENDED_WITHIN_SECONDS:
        scene.tick()
        time.sleep(0.1)
    healed_seconds = boottime() - healed_at
    told(boottime() - began_at, "all runs have ended")
    scene.stop_supervisors(SUPERVISORS_STOP_WITHIN_SECONDS)
    told(boottime() - began_at, "the supervisors have stopped")
    return healed_seconds


def _all_ended(scene: Scene) -> bool:
    try:
        counts = scene.stack.queries.count_runs()
    except StoreError:  # it has only just come back
        return False
    return not counts.get(RunStatus.PENDING) and not counts.get(RunStatus.LEASED)


def _read(scene: Scene, nemesis: Nemesis) -> History:
    rows = read_rows(scene.stack)
    left = [f"pid {pid}: {command}" for pid, command in scene.left_behind(LEFT_BEHIND_SECONDS).items()]
    return History(
        intents=read_intents(scene.folder),
        executions=read_executions(scene.folder),
        changes=read_changes(scene.database),
        rows=rows,
        attempts=read_attempts(scene.stack, [row.run_id for row in rows]),
        said=read_said(scene.folder),
        disturbances=nemesis.disturbances,
        exits=[each for seat in scene.seats for each in seat.exits],
        left_behind=[*left, *(failure for client in scene.clients for failure in client.failures)],
        runs_at_once_max=int(SETTINGS["MAX_CONCURRENT_RUNS"]),
    )


def plain(report: Report) -> dict[str, object]:
    """For JSON, whose keys are text."""
    return {**msgspec.structs.asdict(report), "holds": report.holds, "verdict": plain_verdict(report.verdict)}


def plain_verdict(verdict: Verdict) -> dict[str, object]:
    plain = msgspec.structs.asdict(verdict)
    plain["reexecuted"] = {f"{cause.what}: {cause.by}": count for cause, count in verdict.reexecuted.items()}
    return plain
