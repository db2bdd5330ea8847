"""make clients: what real clients do on a KoD, on silence, and afterwards; writes RESULT.json and the
tables of docs/explanation/clients.md. Each asks a guarded chronyd, some a second one that is not
guarded too, from a namespace of its own, in three phases: as it likes; treated; and as it likes again.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntpguard import abi, reading
from ntpguard.kernel import bpffs
from tests.bpf.guard import part
from tests.clients.makes import MAKES, Make
from tests.clients.net import CLIENTS, SPARE, SPARE4, Seat, Seen, Wire, network
from tests.lab.lab import SERVER, SERVER4, namespace, run
from tests.pages import filled, table

RESULT = Path(__file__).with_name("RESULT.json")
PAGE = Path(__file__).parents[2] / "docs/explanation/clients.md"
PHASES = ("before", "treated", "again")
TREATMENTS = ("free", "kissed", "silent")
ONCE_EVERY_SECONDS = 20.0
BASE = 'mode = "enforce"\n[sources]\ncapacity = 4096\n'
# one request an hour conforms; the least leak there is; a KoD each second, to whoever does not heed it
STRICT = (
    '[limit]\nrate = "1/hour"\nburst = 1\nleak = "1/1024"\n'
    '[kod]\ninterval = "1s"\npatience = 15\nflood = 254\n'
)
CLASSES = {"free": 'action = "exempt"\n', "silent": "kod = false\n"}


@dataclass
class Trial:
    """One client, what is done to it, and what its runs came to: when, exit code, last line."""

    make: Make
    treatment: str
    servers: tuple[str, ...]
    seat: Seat
    runs: list[tuple[float, int, str]] = field(default_factory=list)

    def repeat(self, first: float, stop: threading.Event) -> None:
        """Runs a client that ends, again and again, after so many seconds."""
        stop.wait(first)
        while not stop.is_set():
            begin = time.monotonic()
            self.runs.append((begin, *self.make.run_once(self.seat, self.servers)))
            stop.wait(max(0.0, begin + ONCE_EVERY_SECONDS - time.monotonic()))


def policy(phase: str, trials: Iterable[Trial]) -> str:
    """A phase's policy."""
    if phase != "treated":
        return BASE
    text = BASE + STRICT
    for treatment, settings in CLASSES.items():
        sources = [f"{one.seat.address}/32" for one in trials if one.treatment == treatment]
        text += f'[[class]]\nname = "{treatment}"\nprefixes = {json.dumps(sources)}\n{settings}'
    return text


def seated(seats: Sequence[Seat]) -> None:
    """Gives the seats addresses that the control group of the KoD trial has no part in."""
    with namespace(SERVER), reading.open_running(bpffs.directory(None)) as guard:
        free = (
            one
            for one in (f"{CLIENTS}{number}" for number in range(20, 250))
            if part(one, guard.seed) > abi.PART_TRIED
        )
    for seat in seats:
        seat.address = next(free)
        run("ip", "-n", seat.name, "address", "add", f"{seat.address}/24", "dev", "eth0")


def described(seen: Sequence[Seen], runs: Sequence[tuple[float, int, str]]) -> dict[str, Any]:
    """One phase of one trial, in numbers."""
    guarded = [one for one in seen if one.server == SERVER]
    return {
        "requests": sum(one.request for one in guarded),
        "answered": sum(not one.request and one.stratum > 0 for one in guarded),
        "kissed": sum(not one.request and one.stratum == 0 for one in guarded),
        "requests_to_spare": sum(one.request for one in seen if one.server == SPARE),
        "runs": len(runs),
        "runs_failed": sum(code != 0 for _, code, _ in runs),
        "said": runs[-1][2] if runs else None,
    }


def measure(seconds: Sequence[float], makes: Sequence[Make]) -> list[dict[str, Any]]:
    """All trials at once."""
    plan = [
        (make, treatment, servers)
        for servers in ((SERVER4,), (SERVER4, SPARE4))
        for make in makes
        for treatment in TREATMENTS
        if make.several or len(servers) == 1
    ]
    wire, stop = Wire(), threading.Event()
    bounds = []
    with ExitStack() as stack:
        server, seats = stack.enter_context(network(Path("/run/clients"), len(plan)))
        server.server()
        file = server.directory / "ntpguard.toml"
        trials = [Trial(*one, seat) for one, seat in zip(plan, seats, strict=True)]
        file.write_text(policy("before", trials))
        server.guard("up", "eth0", "--policy", str(file), "--xdp", "skb")
        seated(seats)
        stack.enter_context(wire.watched())
        threads = []
        for number, one in enumerate(trials):
            if one.make.start:
                one.make.start(one.seat, one.servers)
            else:
                first = ONCE_EVERY_SECONDS * number / len(trials)
                threads.append(threading.Thread(target=one.repeat, args=(first, stop)))
        for thread in threads:
            thread.start()
        for phase, length in zip(PHASES, seconds, strict=True):
            if phase != "before":
                file.write_text(policy(phase, trials))
                server.guard("policy", "apply", str(file))
            begin = time.monotonic()
            print(f"{phase}: {length:g} s, {len(trials)} trials", flush=True)
            time.sleep(length)
            bounds.append((begin, time.monotonic()))
        stop.set()
        for thread in threads:
            thread.join()
        return [reported(one, wire, bounds) for one in trials]


def reported(trial: Trial, wire: Wire, bounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """A trial in numbers; bounds are of its phases."""
    address = trial.seat.address
    row: dict[str, Any] = {
        "client": f"{trial.make.name} {trial.make.version()}",
        "treatment": trial.treatment,
        "servers": len(trial.servers),
        "ended": any(one.process.poll() is not None for one in trial.seat.daemons),
    }
    for phase, (begin, end) in zip(PHASES, bounds, strict=True):
        runs = [one for one in trial.runs if begin <= one[0] < end]
        row[phase] = described(wire.between(address, begin, end), runs)
    again = [one for one in wire.between(address, *bounds[-1]) if one.server == SERVER]
    for key, answer in (("first_request_seconds", False), ("first_answer_seconds", True)):
        found = (
            one.seconds - bounds[-1][0]
            for one in again
            if (not one.request and one.stratum > 0 if answer else one.request)
        )
        first = next(found, None)
        row["again"][key] = None if first is None else round(first, 1)
    return row


def tables(result: dict[str, Any]) -> dict[str, str]:
    """By name, for tests.pages.filled."""
    minutes = result["seconds"][1] / 60
    # by client, servers, treatment
    trials = {(one["client"], one["servers"], one["treatment"]): one for one in result["trials"]}

    def pace(one: dict[str, Any], key: str = "requests") -> str:
        return f"{one['treated'][key] / minutes:.3g}"

    def fail(one: dict[str, Any]) -> str:
        phase = one["treated"]
        return f"{phase['runs_failed']} of {phase['runs']}" if phase["runs"] else ""

    def first(one: dict[str, Any]) -> str:
        seconds = one["again"]["first_answer_seconds"]
        return "not in time" if seconds is None else f"{seconds:.0f} s"

    one_server, two_servers = [], []
    for client in dict.fromkeys(one["client"] for one in result["trials"]):
        free, kissed, silent = (trials[client, 1, one] for one in TREATMENTS)
        one_server.append(
            (
                *(client, pace(free), first(free)),
                *(pace(kissed), kissed["treated"]["kissed"], fail(kissed), first(kissed)),
                *(pace(silent), fail(silent), first(silent)),
            )
        )
        if (client, 2, "free") in trials:
            both = [trials[client, 2, one] for one in TREATMENTS]
            paces = [f"{pace(one)} + {pace(one, 'requests_to_spare')}" for one in both]
            two_servers.append((client, *paces, *(first(one) for one in both[1:])))
    head = ("client", "free", "then after", "kissed", "KoDs", "runs fail", "then after")
    return {
        "clients": table((*head, "silence", "runs fail", "then after"), one_server),
        "spare": table(
            ("client", "free", "kissed", "silence", "after KoDs", "after silence"), two_servers
        ),
    }


def page() -> str:
    """The page with its tables written anew."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    return filled(PAGE.read_text(encoding="utf-8"), tables(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--seconds", type=float, nargs=len(PHASES), default=(120, 300, 900), help="of each phase"
    )
    parser.add_argument("--only", default="", help="clients with this in their name")
    parser.add_argument("--write", action="store_true", help="the result and the page")
    options = parser.parse_args()
    chosen = [one for one in MAKES if options.only in one.name]
    found = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "kernel": os.uname().release.split("-")[0],
        "seconds": options.seconds,
        "trials": measure(options.seconds, chosen),
    }
    print(*tables(found).values(), sep="\n\n")
    if ended := [one["client"] for one in found["trials"] if one["ended"]]:
        sys.exit(f"ended by themselves: {', '.join(ended)}")
    if options.write:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(), encoding="utf-8")
