"""`make model`: model and program judge millions of packets; RESULT.json says how it went.

python -m tests.model.run 1000000      so many packets, from seed 0 on
python -m tests.model.run --seed 17    one seed, and the smallest steps on which the two differ
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ntpguard.words import Reason
from tests.bpf.guard import OBJECT
from tests.model.compare import Met, Programs, first_difference, met, run, smallest
from tests.model.sequence import Sequence

PACKETS_PER_SEED = 2000
RESULT = Path(__file__).with_name("RESULT.json")
REPORT_SECONDS = 10
MOST_DIFFERENCES = 5


def judge_seeds(seeds: range, cpu: int) -> Iterator[tuple[Met, str]]:
    """Of each seed's sequence: how many packets met each verdict and reason; the difference or ""."""
    os.sched_setaffinity(0, {cpu})
    programs = Programs(cpu)
    for seed in seeds:
        sequence = Sequence(seed, PACKETS_PER_SEED)
        program = programs.of(sequence.shape)
        difference, model = run(program, sequence.steps)
        text = ""
        if difference:
            text = f"seed {seed}, {first_difference(program, sequence.steps)}"
        yield met(model), text
    programs.close()


def work(seeds: range, cpu: int, results: "multiprocessing.Queue[tuple[Met, str] | None]") -> None:
    """One process: its results, then None."""
    for result in judge_seeds(seeds, cpu):
        results.put(result)
    results.put(None)


def judge(packets: int) -> int:
    """All CPUs judge so many packets; writes RESULT.json; 1 if there was a difference."""
    count = -(-packets // PACKETS_PER_SEED)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    results: multiprocessing.Queue[tuple[Met, str] | None] = multiprocessing.Queue()
    workers = [
        multiprocessing.Process(
            target=work, args=(range(i, count, len(cpus)), cpu, results), daemon=True
        )
        for i, cpu in enumerate(cpus)
    ]
    for worker in workers:
        worker.start()
    total, differences, done, ended = Met(), list[str](), 0, 0
    begin = reported = time.monotonic()
    while ended < len(workers):
        result = results.get(timeout=120)
        if result is None:
            ended += 1
            continue
        done += 1
        total += result[0]
        if result[1]:
            differences.append(result[1])
            print(result[1], flush=True)
            if len(differences) == MOST_DIFFERENCES:
                break
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            speed = done * PACKETS_PER_SEED / (reported - begin)
            print(f"{done * PACKETS_PER_SEED:,} packets, {speed:,.0f}/s, {len(differences)} differ")
            sys.stdout.flush()
    for worker in workers:
        worker.terminate()
        worker.join()
    write_result(done, differences, total)
    missed = [reason.word for reason in Reason if not any(r == reason for _, r in total)]
    print(f"{done * PACKETS_PER_SEED:,} packets, {len(differences)} differences: {RESULT}")
    if missed:
        print(
            f"never met: {', '.join(missed)}: not enough packets, or a generator that avoids them"
        )
    return int(bool(differences or missed))


def write_result(seeds: int, differences: list[str], total: Met) -> None:
    """RESULT.json."""
    result = {
        "packets": seeds * PACKETS_PER_SEED,
        "seeds": {"from": 0, "count": seeds, "packets_each": PACKETS_PER_SEED},
        "differences": differences,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "object_sha256": hashlib.sha256(OBJECT.read_bytes()).hexdigest(),
        "kernel": platform.release(),
        "met": {f"{v.word} {r.word}": count for (v, r), count in sorted(total.items())},
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def examine(seed: int) -> int:
    """One seed: the difference and the smallest steps that show it; 1 if there is one."""
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    programs = Programs(cpu)
    sequence = Sequence(seed, PACKETS_PER_SEED)
    program = programs.of(sequence.shape)
    if not first_difference(program, sequence.steps):
        print(f"seed {seed}: no difference")
        return 0
    steps = smallest(program, sequence.steps)
    print(f"seed {seed}, {sequence.shape}")
    print(*steps, first_difference(program, steps), sep="\n")
    return 1


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("packets", type=int, nargs="?", default=10_000_000)
    parser.add_argument("--seed", type=int, help="examine this one only")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return examine(arguments.seed)
    return judge(arguments.packets)


if __name__ == "__main__":
    sys.exit(main())
