"""What the bench says: medians over interleaved rounds, ratios within a round, and of which machine."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.lab.lab import BUILD

RESULT = Path(__file__).with_name("RESULT.json")


class Rounds:
    """Figures by name, one for each round."""

    def __init__(self) -> None:
        self.figures: dict[str, list[float]] = {}

    def add(self, name: str, figure: float) -> None:
        """This round's figure."""
        self.figures.setdefault(name, []).append(figure)

    def median(self, name: str) -> float:
        """The median over the rounds."""
        return statistics.median(self.figures[name])

    def ratio(self, name: str, other: str, less: str | None = None) -> float:
        """name / other, the median of each round's; `less`: what is taken from both before."""
        taken = self.figures[less] if less else [0.0] * len(self.figures[name])
        triples = zip(self.figures[name], self.figures[other], taken, strict=True)
        return statistics.median((a - c) / (b - c) for a, b, c in triples)

    def difference(self, name: str, other: str) -> float:
        """name - other, the median of each round's."""
        pairs = zip(self.figures[name], self.figures[other], strict=True)
        return statistics.median(a - b for a, b in pairs)


def machine() -> dict[str, Any]:
    """What the figures are true of."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    virtual = subprocess.run(["systemd-detect-virt", "--vm"], capture_output=True, text=True)
    memory = int(Path("/proc/meminfo").read_text().split()[1])
    jit = Path("/proc/sys/net/core/bpf_jit_enable")
    overflow = Path("/sys/devices/system/cpu/vulnerabilities/spec_rstack_overflow")
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**20),
        "virtual": virtual.stdout.strip() or None,
        "kernel": platform.release(),
        "jit": jit.read_text().strip() if jit.exists() else "always",
        "spec_rstack_overflow": overflow.read_text().strip() if overflow.exists() else None,
    }


def save(part: str, data: dict[str, Any], rounds: int, keep: bool) -> None:
    """Writes build/bench/PART.json; `keep`: and the part in RESULT.json, which is published."""
    whole = {
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "machine": machine(),
        "rounds": rounds,
        **data,
    }
    made = BUILD / "bench" / f"{part}.json"
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(json.dumps(whole, indent=1) + "\n")
    if keep:
        published = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        published[part] = whole
        RESULT.write_text(json.dumps(published, indent=1, sort_keys=True) + "\n")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns: the first one to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


class Progress:
    """Says where a long run is, on one line each."""

    def __init__(self) -> None:
        self.begin = time.monotonic()

    def __call__(self, text: str) -> None:
        """One line, with the seconds so far."""
        print(f"[{time.monotonic() - self.begin:6.0f} s] {text}", flush=True)
