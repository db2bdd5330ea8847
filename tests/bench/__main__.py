"""`make bench`: every part, or some of them.

python -m tests.bench [--only PART ...] [--rounds N] [--sources N ...] [--keep]
"""

import argparse
import os

from tests.bench import cost, delay, growth, service

PARTS = ("cost", "growth", "service", "delay")


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sources", type=int, nargs="+", default=cost.SOURCES)
    parser.add_argument("--frames", type=int, default=cost.FRAMES)
    parser.add_argument("--attacks", nargs="+", choices=service.ATTACKS, default=[*service.ATTACKS])
    parser.add_argument("--seconds", type=float, default=service.SECONDS, help="of each attack")
    parser.add_argument("--capacities", type=int, nargs="+", default=growth.CAPACITIES)
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--keep", action="store_true", help="write tests/bench/RESULT.json too")
    asked = parser.parse_args()
    if "cost" in asked.only:
        cost.run(asked.rounds, tuple(asked.sources), asked.frames, asked.cpu, asked.keep)
    if "growth" in asked.only:
        capacities = tuple(asked.capacities)
        growth.run(asked.rounds, capacities, asked.frames, asked.cpu, asked.keep)
    if "service" in asked.only:
        service.run(asked.rounds, tuple(asked.attacks), asked.seconds, asked.cpu, asked.keep)
    if "delay" in asked.only:
        delay.run(asked.rounds, asked.seconds, asked.cpu, asked.keep)


if __name__ == "__main__":
    main()
