"""make clients: what real clients do on a KoD, on silence, and afterwards; writes RESULT.json and the
table of docs/explanation/clients.md. Each asks one guarded chronyd from a namespace of its own, in four
phases: as it likes, kissed, dropped, and as it likes again.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ntpguard import abi, reading
from ntpguard.kernel import bpffs
from tests.bpf.guard import part
from tests.clients.makes import MAKES, Make
from tests.clients.net import CLIENTS, Seat, Seen, Wire, network
from tests.lab.lab import SERVER, Lab, namespace, run
from tests.pages import filled, table

RESULT = Path(__file__).with_name("RESULT.json")
PAGE = Path(__file__).parents[2] / "docs/explanation/clients.md"
PHASES = ("free", "kissed", "dropped", "again")
ONCE_EVERY_SECONDS = 8.0
BASE = 'mode = "enforce"\n[sources]\ncapacity = 4096\n'
# a request conforms each hour; the least leak there is; a KoD each second, to whoever does not heed it
KISSING = (
    '[limit]\nrate = "1/hour"\nburst = 1\nleak = "1/1024"\n[kod]\ninterval = "1s"\npatience = 15\n'
)
POLICIES = {
    "free": BASE,
    "kissed": BASE + KISSING,
    "dropped": BASE + KISSING + "enabled = false\n",
    "again": BASE,
}


def apply(server: Lab, phase: str, *, up: bool = False) -> None:
    """Runs a phase's policy."""
    file = server.directory / "ntpguard.toml"
    file.write_text(POLICIES[phase])
    if up:
        server.guard("up", "eth0", "--policy", str(file), "--xdp", "skb")
    else:
        server.guard("policy", "apply", str(file))


def seated(seats: Sequence[Seat]) -> None:
    """Gives the seats addresses that the control group of the KoD trial has no part in."""
    with namespace(SERVER), reading.open_running(bpffs.directory(None)) as guard:
        free = (
            one
            for one in (f"{CLIENTS}{number}" for number in range(20, 250))
            if part(one, guard.seed) > abi.PART_TRIED
        )
    for seat in seats:
        run("ip", "-n", seat.name, "address", "flush", "dev", "eth0", "scope", "global")
        seat.address = next(free)
        run("ip", "-n", seat.name, "address", "add", f"{seat.address}/24", "dev", "eth0")


def repeat(
    make: Make, seat: Seat, outcomes: list[tuple[float, int, str]], stop: threading.Event
) -> None:
    """Runs a client that ends, again and again."""
    while not stop.is_set():
        begin = time.monotonic()
        code, line = make.run_once(seat)
        outcomes.append((begin, code, line))
        stop.wait(max(0.0, begin + ONCE_EVERY_SECONDS - time.monotonic()))


def described(seen: Sequence[Seen], outcomes: Sequence[tuple[float, int, str]]) -> dict[str, Any]:
    """One phase of one client, in numbers."""
    asked = [one.seconds for one in seen if one.request]
    gaps = sorted(later - earlier for earlier, later in pairwise(asked))
    return {
        "requests": len(asked),
        "answered": sum(not one.request and one.stratum > 0 for one in seen),
        "kissed": sum(not one.request and one.stratum == 0 for one in seen),
        "median_gap_seconds": round(gaps[len(gaps) // 2], 2) if gaps else None,
        "runs": len(outcomes),
        "runs_failed": sum(code != 0 for _, code, _ in outcomes),
        "said": outcomes[-1][2] if outcomes else None,
    }


def measure(seconds: float) -> list[dict[str, Any]]:
    """All clients at once."""
    rows: list[dict[str, Any]] = []
    with network(Path("/run/clients"), len(MAKES)) as (server, seats):
        server.server()
        apply(server, "free", up=True)
        seated(seats)
        wire, stop = Wire(), threading.Event()
        outcomes: list[list[tuple[float, int, str]]] = [[] for _ in MAKES]
        with wire.watched():
            threads = []
            for make, seat, own in zip(MAKES, seats, outcomes, strict=True):
                if make.start:
                    make.start(seat)
                else:
                    threads.append(threading.Thread(target=repeat, args=(make, seat, own, stop)))
                    threads[-1].start()
            bounds = []
            for phase in PHASES:
                if phase != "free":
                    apply(server, phase)
                begin = time.monotonic()
                print(f"{phase}: {seconds:g} s", flush=True)
                time.sleep(seconds)
                bounds.append((phase, begin, time.monotonic()))
            stop.set()
            for one in threads:
                one.join()
        for make, seat, own in zip(MAKES, seats, outcomes, strict=True):
            row: dict[str, Any] = {"client": make.name, "version": make.version()}
            for phase, begin, end in bounds:
                within = [one for one in own if begin <= one[0] < end]
                row[phase] = described(wire.between(seat.address, begin, end), within)
            answers = [
                one.seconds - bounds[-1][1]
                for one in wire.between(seat.address, bounds[-1][1], bounds[-1][2])
                if not one.request and one.stratum > 0
            ]
            row["again"]["first_answer_seconds"] = round(answers[0], 1) if answers else None
            rows.append(row)
    return rows


def pace(phase: dict[str, Any], seconds: float) -> str:
    """Requests a minute."""
    return f"{60 * phase['requests'] / seconds:.0f}"


def tables(result: dict[str, Any]) -> dict[str, str]:
    """By name, for tests.pages.filled."""
    seconds = result["seconds"]
    rows = []
    for one in result["clients"]:
        first = one["again"]["first_answer_seconds"]
        failed = f"{one['kissed']['runs_failed']} of {one['kissed']['runs']} fail"
        rows.append(
            (
                f"{one['client']} {one['version']}",
                *(pace(one[phase], seconds) for phase in PHASES),
                one["kissed"]["kissed"],
                failed if one["kissed"]["runs"] else "",
                "not in time" if first is None else f"{first:.0f} s",
            )
        )
    head = (
        "client",
        "as it likes",
        "kissed",
        "dropped",
        "again",
        "KoDs",
        "runs kissed",
        "answered again after",
    )
    return {"clients": table(head, rows)}


def page() -> str:
    """The page with its table written anew."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    return filled(PAGE.read_text(encoding="utf-8"), tables(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120.0, help="of each phase")
    parser.add_argument("--write", action="store_true", help="the result and the page")
    options = parser.parse_args()
    found = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "kernel": os.uname().release.split("-")[0],
        "seconds": options.seconds,
        "clients": measure(options.seconds),
    }
    print(tables(found)["clients"])
    if options.write:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if PAGE.exists():
            PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
