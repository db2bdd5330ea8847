"""The packet path's counters, summed over the CPUs."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product

from ntpguard import abi
from ntpguard.kernel import libbpf
from ntpguard.words import Family, Reason, Verdict


@dataclass(frozen=True)
class Cell:
    """One counter."""

    interface: str
    class_index: int
    family: Family
    verdict: Verdict
    reason: Reason
    packets: int


@dataclass(frozen=True)
class Counts:
    """All counters, summed over the CPUs; cells of 0 are left out."""

    happened: list[Cell] = field(default_factory=list)
    observed: list[Cell] = field(default_factory=list)
    frame_bytes: dict[tuple[str, Family, Verdict], int] = field(default_factory=dict)

    def verdicts(self) -> dict[Verdict, int]:
        """Packets by verdict."""
        totals = dict.fromkeys(Verdict, 0)
        for cell in self.happened:
            totals[cell.verdict] += cell.packets
        return totals


def total(cpus: Iterable[bytes]) -> bytes:
    """The sum of words counted per CPU; most are 0, and all-zero CPUs cost nothing."""
    raws = list(cpus)
    counted = [memoryview(raw).cast("Q") for raw in raws if any(raw)]
    if not counted:
        return bytes(len(raws[0]))
    return array("Q", (sum(words) for words in zip(*counted, strict=True))).tobytes()


def add_counters(counts: Counts, name: str, fd: int) -> None:
    """Adds what an interface's map of counters holds, also of classes that the policy has no more:
    a total never goes back.
    """
    for index in range(abi.CLASSES):
        raws = libbpf.map_lookup_percpu(fd, index.to_bytes(4, "little"), abi.size(abi.Counters))
        _add(counts, name, index, abi.Counters.from_buffer_copy(total(raws)))


def _add(counts: Counts, name: str, index: int, own: abi.Counters) -> None:
    for table, cells in ((own.packets, counts.happened), (own.observed, counts.observed)):
        for family, verdict, reason in product(Family, Verdict, Reason):
            packets = int(table[family][verdict][reason])
            if packets:
                cells.append(Cell(name, index, family, verdict, reason, packets))
    for family, verdict in product(Family, Verdict):
        key = (name, family, verdict)
        octets = int(own.bytes[family][verdict])
        counts.frame_bytes[key] = counts.frame_bytes.get(key, 0) + octets
