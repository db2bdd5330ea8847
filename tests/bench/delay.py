"""Delay: how much later a request that passes reaches the stack, from when its frame was made.

Replies leave without passing the guard: what it adds to requests is all that it adds to the asymmetry
of the path, of which a client's offset gets half (RFC 5905, 8).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ntpguard.kernel import bpffs, libbpf
from tests.bench.load import FIRST4, Stream, Wire, pinned_to, request
from tests.bench.report import Progress, Rounds, save, table
from tests.bench.service import CEILING, ENFORCE, KNOWN, MILLION
from tests.bench.subjects import ntpguard, xdp
from tests.lab.lab import SERVER, inside
from tests.lab.lab import run as command

SECONDS = 1.0
BIN_NS, BINS = 32, 8192
FLOODS = {
    "no flood": None,
    "one source": Stream(request(), first=FIRST4, per_second=0.8 * MILLION),
    "1 M spoofed": Stream(request(), sources=MILLION, per_second=0.8 * MILLION),
}
BASE = "perfect knowledge"
SUBJECTS = {
    BASE: xdp("oracle"),
    "ntpguard": ntpguard(ENFORCE),
    "ntpguard, ceiling": ntpguard(ENFORCE + CEILING),
}
QUANTILES = (0.5, 0.99)


@contextmanager
def arrivals(wire: Wire) -> Iterator[int]:
    """Looks at the time where the stack begins. Yields the map that counts by delay."""
    tc = inside(SERVER, "tc")
    pin = bpffs.directory(None) / "arrive"
    with libbpf.Object(wire.load_object) as program:
        for other in ("flood", "mix", "sink"):
            program.leave_out(other)
        program.load()
        libbpf.obj_pin(program.program_fd("arrive"), pin)
        try:
            command(*tc, "qdisc", "add", "dev", "eth0", "clsact")
            attach = ["filter", "add", "dev", "eth0", "ingress", "bpf", "direct-action"]
            command(*tc, *attach, "object-pinned", str(pin))
            yield program.map_fd("delays")
        finally:
            pin.unlink()


def histogram(fd: int) -> list[int]:
    """Requests by delay, in bins of BIN_NS nanoseconds."""
    counts = []
    for index in range(BINS):
        raw = libbpf.map_lookup(fd, index.to_bytes(4, "little"), 8)
        assert raw is not None, "an array has every key"
        counts.append(int.from_bytes(raw, "little"))
    return counts


def quantile(counts: list[int], share: float) -> float:
    """Nanoseconds that so many of the requests took at most."""
    rest = share * sum(counts)
    for index, count in enumerate(counts):
        rest -= count
        if rest <= 0:
            return (index + 0.5) * BIN_NS
    raise AssertionError("no request arrived")


def run(rounds: int, seconds: float, cpu: int, keep: bool) -> None:
    """Measures, prints, saves."""
    pinned_to(cpu)
    figures, say = Rounds(), Progress()
    for number in range(rounds):
        say(f"delay, round {number + 1} of {rounds}")
        for subject, attached in SUBJECTS.items():
            with (
                TemporaryDirectory() as directory,
                Wire(Path(directory)) as wire,
                attached(wire),
                arrivals(wire) as fd,
            ):
                for flood, stream in FLOODS.items():
                    before = histogram(fd)
                    streams = [replace(KNOWN, per_second=2_000), *([stream] if stream else [])]
                    wire.mix(streams, seconds, stamped=True)
                    counts = [b - a for a, b in zip(before, histogram(fd), strict=True)]
                    for share in QUANTILES:
                        figures.add(f"{subject}, {flood}, {share}", quantile(counts, share))
    rows, result = [], []
    median, last = QUANTILES
    for subject in list(SUBJECTS)[1:]:
        for flood in FLOODS:
            base, ours = f"{BASE}, {flood}, ", f"{subject}, {flood}, "
            row = {
                "subject": subject,
                "flood": flood,
                "median_ns": figures.median(f"{base}{median}"),
                "p99_ns": figures.median(f"{base}{last}"),
                "added_median_ns": figures.difference(f"{ours}{median}", f"{base}{median}"),
                "added_p99_ns": figures.difference(f"{ours}{last}", f"{base}{last}"),
            }
            # the noise: how far apart the requests are without the guard
            row["noise_ns"] = row["p99_ns"] - row["median_ns"]
            row["offset_ns"] = row["added_median_ns"] / 2
            result.append(row)
            rows.append([subject, flood, *(f"{value:.0f}" for value in list(row.values())[2:])])
    head = ("subject", "flood", "median", "p99", "added median", "added p99", "noise", "offset")
    print(table(head, rows))
    save("delay", {"seconds": seconds, "results": result}, rounds, keep)
