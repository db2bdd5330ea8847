"""Cost: nanoseconds of one core for a packet, of ntpguard and of what it is measured against.

Live frames through a veth pair: generator, server and sink on one core. A ratio of rates is with the
generator's cost, as a machine has it that also does the rest; a net ratio is without it. What a packet
that is not NTP costs is too little for that: there the program runs alone (BPF_PROG_TEST_RUN).
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyroute2 import IPRoute

from ntpguard.kernel import libbpf
from tests import testrun
from tests.bench.load import FIRST4, FIRST6, Stream, Wire, pinned_to, request
from tests.bench.report import Progress, Rounds, save, table
from tests.bench.subjects import (
    STRICT,
    Subject,
    hashlimit,
    kiss_everything,
    never_limit,
    nft,
    ntpguard,
    open_gate,
    xdp,
)
from tests.bpf.packets import Frame
from tests.lab.lab import SERVER, namespace

FRAMES = 500_000
ALONE = 4_000_000
SOURCES = (1, 1_000, 100_000, 1_000_000, 4_000_000)
DEFAULT_CAPACITY = 1_048_576
LARGE = "[sources]\ncapacity = 4_194_304\n"
SIGNATURES = "".join(
    f"""
[[signature]]
name = "shape-{number}"
header = "e3 00 06 ec 00000000 00000000 {number:08x}"
"""
    for number in range(8)
)


def prefixes(count: int) -> str:
    """A policy with so many prefixes, none of which a source of the bench is in."""
    listed = ", ".join(f'"100.{n >> 16}.{n >> 8 & 255}.{n & 255}"' for n in range(count))
    return f'{STRICT}[[class]]\nname = "listed"\nrate = "2/hour"\nprefixes = [{listed}]\n'


@dataclass(frozen=True)
class Case:
    """One subject with one kind of frame, from each number of sources."""

    name: str
    subject: Subject
    sources: tuple[int, ...]
    ipv6: bool = False
    port: int = 123


def cases(sources: tuple[int, ...]) -> list[Case]:
    """Everything that is measured in a round."""
    usual = tuple(n for n in sources if n <= DEFAULT_CAPACITY)
    large = tuple(n for n in sources if n > DEFAULT_CAPACITY)
    few = tuple(n for n in usual if n in (1, 100_000)) or usual[:1]
    rows = [
        Case("empty drop", xdp("drop"), sources),
        Case("empty drop ipv6", xdp("drop"), usual, ipv6=True),
        Case("touch", xdp("touch", buckets=1 << 19), usual),
        Case("drop", ntpguard(change=open_gate), usual),
        Case("drop ipv6", ntpguard(change=open_gate), usual, ipv6=True),
        Case("drop, 100 prefixes", ntpguard(prefixes(100), change=open_gate), few),
        Case("drop, 100000 prefixes", ntpguard(prefixes(100_000), change=open_gate), few),
        Case("drop, 8 signatures", ntpguard(STRICT + SIGNATURES, change=open_gate), few),
        Case("swap", xdp("swap"), usual),
        Case("swap ipv6", xdp("swap"), usual, ipv6=True),
        Case("kod", ntpguard(change=kiss_everything), usual),
        Case("kod ipv6", ntpguard(change=kiss_everything), usual, ipv6=True),
        Case("empty pass", xdp("pass"), usual),
        Case("pass", ntpguard(change=never_limit), usual),
        Case("LRU_HASH", xdp("lru"), usual),
        Case("nft prerouting", nft("prerouting"), sources),
        Case("nft ingress", nft("ingress"), usual),
        Case("hashlimit", hashlimit(), sources),
    ]
    if large:
        rows.append(Case("drop", ntpguard(STRICT + LARGE, change=open_gate), large))
    return rows


def run(rounds: int, sources: tuple[int, ...], frames: int, cpu: int, keep: bool) -> None:
    """Measures, prints, saves."""
    pinned_to(cpu)
    figures, say = Rounds(), Progress()
    with TemporaryDirectory() as directory, Wire(Path(directory)) as wire:
        for number in range(rounds):
            say(f"cost, round {number + 1} of {rounds}")
            dry = wire.flood(Stream(request()), frames, dry=True)
            figures.add("generator", dry.ns_per_frame)
            for case in cases(sources):
                with case.subject(wire):
                    for count in case.sources:
                        measure(wire, case, count, frames, figures)
            alone(wire, figures)
    rows = summary(figures, sources)
    print(table(("packet", "sources", "ns", "over", "rate", "net", "of"), rows))
    ns = {name: round(figures.median(name), 1) for name in figures.figures}
    save("cost", {"frames": frames, "ns": ns, "figures": headline(figures, sources)}, rounds, keep)


def measure(wire: Wire, case: Case, count: int, frames: int, figures: Rounds) -> None:
    """Each source sends one request or more before the clock is looked at."""
    first = FIRST6 if case.ipv6 else FIRST4
    frame = request(ipv6=case.ipv6, destination_port=case.port)
    stream = partial(Stream, frame, count, first)
    for _ in range(2):
        wire.flood(stream(in_order=True), max(2, count))
    figures.add(f"{case.name} {count}", wire.flood(stream(), frames).ns_per_frame)


def alone(wire: Wire, figures: Rounds) -> None:
    """The program's own cost, no driver and no stack around it."""
    frames = {
        "not NTP": request(destination_port=53, destination_mac=wire.server_mac),
        "drop": request(source="11.0.0.0", destination_mac=wire.server_mac),
    }
    with xdp("pass")(wire), namespace(SERVER), attached_program(wire) as fd:
        figures.add("alone: empty", run_alone(fd, frames["not NTP"]))
    with ntpguard(change=open_gate)(wire), namespace(SERVER), attached_program(wire) as fd:
        for name, frame in frames.items():
            figures.add(f"alone: {name}", run_alone(fd, frame))


@contextmanager
def attached_program(wire: Wire) -> Iterator[int]:
    """The XDP program of the server's interface; in its namespace."""
    with IPRoute() as ip:
        (link,) = ip.get_links(wire.server_index)
    number = link.get_attr("IFLA_XDP").get_attr("IFLA_XDP_PROG_ID")
    fd = libbpf.prog_by_id(number)
    try:
        yield fd
    finally:
        os.close(fd)


def run_alone(fd: int, frame: Frame) -> float:
    """Nanoseconds a run, the same packet again and again."""
    raw = bytes(frame)
    testrun.run(fd, raw, ALONE)
    begin = time.perf_counter_ns()
    testrun.run(fd, raw, ALONE)
    return (time.perf_counter_ns() - begin) / ALONE


def summary(figures: Rounds, sources: tuple[int, ...]) -> list[tuple[object, ...]]:
    """Rows: case, sources, ns, ns over its baseline, share of its rate, the same net, baseline."""
    rows: list[tuple[object, ...]] = []
    for case in cases(sources):
        for count in case.sources:
            name, base = f"{case.name} {count}", baseline(case, count)
            rows.append(
                (
                    case.name,
                    count,
                    f"{figures.median(name):.0f}",
                    f"{figures.difference(name, base):+.0f}",
                    f"{figures.ratio(base, name):.2f}",
                    f"{figures.ratio(base, name, 'generator'):.2f}",
                    base.rpartition(" ")[0],
                )
            )
    return rows


def baseline(case: Case, count: int) -> str:
    """What a case is a share of."""
    family = " ipv6" if case.ipv6 else ""
    if case.name.startswith("kod") or case.name.startswith("swap"):
        return f"swap{family} {count}"
    if case.name in ("pass", "empty pass"):
        return f"empty pass {count}"
    return f"empty drop{family} {count}"


def headline(figures: Rounds, sources: tuple[int, ...]) -> dict[str, Any]:
    """The figures of the README, by name."""
    found: dict[str, Callable[[], float]] = {
        "non_ntp_ns_over_empty": lambda: figures.difference("alone: not NTP", "alone: empty"),
        "drop_ns_over_empty": lambda: figures.difference("alone: drop", "alone: empty"),
    }
    for count in sources:
        found |= {
            f"drop_share_{count}": partial(figures.ratio, f"empty drop {count}", f"drop {count}"),
            f"kod_share_{count}": partial(figures.ratio, f"swap {count}", f"kod {count}"),
            f"touch_share_{count}": partial(figures.ratio, f"empty drop {count}", f"touch {count}"),
        }
        for peer in ("LRU_HASH", "nft prerouting", "nft ingress", "hashlimit"):
            word = peer.lower().replace(" ", "_")
            found[f"times_{word}_{count}"] = partial(
                figures.ratio, f"{peer} {count}", f"drop {count}"
            )
            found[f"times_{word}_{count}_net"] = partial(
                figures.ratio, f"{peer} {count}", f"drop {count}", "generator"
            )
    for count in (1, 100_000):
        found[f"prefixes_more_{count}"] = lambda count=count: (
            figures.ratio(f"drop, 100000 prefixes {count}", f"drop {count}") - 1
        )
    result = {}
    for name, figure in found.items():
        try:
            result[name] = round(figure(), 3)
        except KeyError:
            continue  # not of this run
    return result
