"""Growth: sources held at 99 %, memory for each, and what a drop costs, by the table's capacity."""

from pathlib import Path
from tempfile import TemporaryDirectory

from ntpguard import abi, reading
from ntpguard.kernel import bpffs
from ntpguard.policy.compile import buckets_for
from tests.bench.load import FIRST4, Stream, Wire, pinned_to, request
from tests.bench.report import Progress, Rounds, save, table
from tests.bench.subjects import STRICT, ntpguard, open_gate
from tests.lab.lab import SERVER, namespace

CAPACITIES = tuple(1 << shift for shift in (10, 12, 14, 16, 18, 20, 22, 24))
LOST = 0.01
STEPS = 32  # to the capacity


def held() -> int:
    """Sources in the table."""
    with namespace(SERVER), reading.open_running(bpffs.directory(None)) as guard:
        return sum(guard.sources_held().values())


def run(rounds: int, capacities: tuple[int, ...], frames: int, cpu: int, keep: bool) -> None:
    """Measures, prints, saves."""
    pinned_to(cpu)
    figures, say = Rounds(), Progress()
    for number in range(rounds):
        for capacity in capacities:
            say(f"growth, round {number + 1} of {rounds}: {capacity}")
            policy = f"{STRICT}[sources]\ncapacity = {capacity}\n"
            with (
                TemporaryDirectory() as directory,
                Wire(Path(directory)) as wire,
                ntpguard(policy, change=open_gate)(wire),
            ):
                fill(wire, capacity, frames, figures)
    rows, result = [], []
    for capacity in capacities:
        most = figures.median(f"{capacity} held")
        memory = buckets_for(capacity) * abi.size(abi.Bucket)
        row = {
            "capacity": capacity,
            "memory_bytes": memory,
            "held_at_99_percent": round(most),
            "bytes_per_source": round(memory / most, 1),
            "lost_at_capacity": round(figures.median(f"{capacity} lost"), 4),
            "drop_ns": round(figures.median(f"{capacity} ns"), 1),
        }
        result.append(row)
        rows.append(list(row.values()))
    head = ("capacity", "bytes", "held, 1 % lost", "bytes each", "lost at capacity", "drop ns")
    print(table(head, rows))
    save("growth", {"results": result}, rounds, keep)


def fill(wire: Wire, capacity: int, frames: int, figures: Rounds) -> None:
    """One source after the other, until 1 % of them are not held; then up to the capacity."""
    part = capacity // STEPS
    first = FIRST4
    most = before = (0, 0.0)
    for step in range(1, STEPS + 1):
        wire.flood(Stream(request(), part, first + (step - 1) * part, in_order=True), part)
        lost = 1 - held() / (step * part)
        if lost <= LOST:
            most = (step * part, lost)
        elif before[1] <= LOST:  # between the two
            share = (LOST - before[1]) / (lost - before[1])
            most = (int(before[0] + share * part), LOST)
        before = (step * part, lost)
    figures.add(f"{capacity} held", most[0])
    figures.add(f"{capacity} lost", before[1])
    stream = Stream(request(), capacity, first)
    figures.add(f"{capacity} ns", wire.flood(stream, frames).ns_per_frame)
