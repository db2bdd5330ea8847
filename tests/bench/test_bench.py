"""The bench does what it says, in small; how fast is for `make bench` to tell."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import cost, delay, growth, service
from tests.bench.load import Stream, Wire, request
from tests.bench.subjects import kiss_everything, ntpguard, open_gate, xdp
from tests.bpf.test_lifecycle import pytestmark
from tests.lab.lab import BUILD

__all__ = ["pytestmark"]
FRAMES = 20_000


@pytest.fixture(autouse=True)
def cpu() -> Iterator[int]:
    home = os.sched_getaffinity(0)
    yield max(home)
    os.sched_setaffinity(0, home)


def saved(part: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((BUILD / "bench" / f"{part}.json").read_text())
    return found


def packets(wire: Wire) -> dict[str, int]:
    shown = json.loads(wire.guard("-o", "json", "status", check=False).stdout)
    found: dict[str, int] = shown["data"]["packets"]
    return found


@pytest.mark.parametrize("ipv6", [False, True])
def test_each_frame_of_a_flood_is_judged_and_each_source_passes_once(
    tmp_path: Path, ipv6: bool
) -> None:
    stream = Stream(request(ipv6=ipv6), sources=1_000, first=0x0B000000)
    with Wire(tmp_path) as wire, ntpguard(change=open_gate)(wire):
        wire.flood(stream, FRAMES)
        counted = packets(wire)
    # each once; a few find no slot; the leak is one for each shard, and one a second
    assert 950 <= counted["pass"] <= 1_000 + 256 * 3
    assert sum(counted.values()) == FRAMES


def test_the_baselines_and_the_kods_answer_every_frame(tmp_path: Path) -> None:
    with Wire(tmp_path) as wire:
        with xdp("swap")(wire):
            wire.flood(Stream(request()), FRAMES)
        assert wire.replies()["others"] == (FRAMES, 0)
        with ntpguard(change=kiss_everything)(wire):
            wire.flood(Stream(request()), FRAMES)
        assert wire.replies()["others"] == (FRAMES, FRAMES - 1)
        with xdp("lru")(wire):
            wire.flood(Stream(request()), FRAMES)
        assert wire.replies()["others"] == (FRAMES, FRAMES - 1)


def test_a_mix_keeps_its_paces(tmp_path: Path) -> None:
    paces = (1_000, 10_000)
    streams = [Stream(request(), per_second=pace, burst=10) for pace in paces]
    with Wire(tmp_path) as wire, xdp("swap")(wire):
        half, end = wire.mix(streams, 0.5, 0.5)
    # less where the sender had to wait for a CPU, never more; half of one may be a burst off
    for sent, pace in zip(end.sent.frames, paces, strict=True):
        assert 0.2 * pace <= sent <= pace + 10
    assert 0 < half.sent.frames[1] < end.sent.frames[1]
    assert sum(end.replies["others"]) == sum(end.sent.frames)


def test_every_part_runs_and_saves_what_it_found(cpu: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "ALONE", 10_000)
    cost.run(1, (1, 1_000), FRAMES, cpu, False)
    figures = saved("cost")["figures"]
    assert {"drop_share_1", "kod_share_1000", "times_hashlimit_1"} <= set(figures)  # type: ignore[call-overload]
    growth.run(1, (1_024,), FRAMES, cpu, False)
    (row,) = saved("growth")["results"]  # type: ignore[misc]
    assert 512 <= row["held_at_99_percent"] <= 1_024
    delay.run(1, 0.2, cpu, False)
    compared = len(delay.FLOODS) * (len(delay.SUBJECTS) - 1)
    assert len(saved("delay")["results"]) == compared  # type: ignore[arg-type]


def test_known_clients_are_answered_through_an_attack(
    cpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("no limiter", "ntpguard, ceiling")
    monkeypatch.setattr(service, "SERVERS", {name: service.SERVERS[name] for name in names})
    service.run(1, ("one source",), 0.3, cpu, False)
    rows = saved("service")["results"]
    assert isinstance(rows, list)
    served = {name: [r["known_answered"] for r in rows if r["server"] == name] for name in names}
    assert min(served["ntpguard, ceiling"]) > 0.8, served
    assert max(served["no limiter"]) <= min(served["ntpguard, ceiling"]), served
