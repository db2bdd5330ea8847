"""`ntpguard kod`, on a guard that runs; trials are those that its pinned map holds."""

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntpguard import abi
from ntpguard.exporter.kods import CLIENTS
from ntpguard.kernel import bpffs, libbpf, maps
from ntpguard.moments import monotonic_ns
from ntpguard.policy.check import parse_policy
from ntpguard.words import Group
from tests import NTPGUARD
from tests.bpf.guard import SECOND, part
from tests.bpf.live import data, packets, told
from tests.bpf.packets import IPV4, SERVER4, ntp
from tests.bpf.test_exporter import scrape
from tests.bpf.test_lifecycle import NAMES, ip, pytestmark, up, where

__all__ = ["pytestmark", "where"]
POLICY = """mode = "enforce"
[sources]
capacity = 4096
[limit]
rate = "1/hour"
burst = 1
leak = "1/1024"
[kod]
interval = "1s"
"""
CHRONY, UNKNOWN = ntp(), b"\x24" + bytes(47)


@pytest.fixture
def guard(where: Path) -> Iterator[Path]:
    ip("address", "add", f"{SERVER4}/24", "dev", NAMES[0])
    up(where, policy=parse_policy(POLICY))
    yield where


def note(where: Path, group: Group, after: int, count: int, header: bytes = CHRONY) -> None:
    """So many trials of sources that sent 16 requests in 16 s, and `after` in the 32 s then."""
    now = monotonic_ns() - 100 * SECOND
    with maps.descriptor(bpffs.pins(where) / "trials") as fd:
        first = len(list(libbpf.map_keys(fd, 8)))
        for number in range(first, first + count):
            one = abi.Trial(
                begin_ns=now,
                kod_ns=now + 16 * SECOND,
                end_ns=now + 48 * SECOND,
                begin_requests=1,
                kod_requests=17,
                end_requests=17 + after,
                source_port=40000,
                group=group,
                header=(ctypes.c_uint8 * abi.HEADER_BYTES)(*header),
            )
            libbpf.map_update(fd, (number + 1).to_bytes(8, "little"), bytes(one))


def test_kissed_sources_are_compared_with_the_control_group(guard: Path) -> None:
    """Newcombe's case (a): 56 of 70 beside 48 of 80."""
    note(guard, Group.KISSED, after=4, count=56)
    note(guard, Group.KISSED, after=32, count=14)
    note(guard, Group.CONTROL, after=4, count=48)
    note(guard, Group.CONTROL, after=32, count=32)
    note(guard, Group.KISSED, after=64, count=3, header=UNKNOWN)
    found = data("kod")
    assert [one["client"] for one in found["clients"]] == [None, "chrony", "unknown"]
    total, chrony, unknown = found["clients"]
    assert chrony["kissed"] == {"sources": 70, "slowed": 56, "same": 14, "faster": 0}
    assert chrony["control"] == {"sources": 80, "slowed": 48, "same": 32, "faster": 0}
    assert chrony["slowed"]["difference"] == pytest.approx(0.2)
    assert chrony["slowed"]["low"] == pytest.approx(0.0524, abs=5e-5)
    assert chrony["slowed"]["high"] == pytest.approx(0.3339, abs=5e-5)
    assert total["kissed"]["sources"] == 73
    assert unknown["slowed"] is None
    lines = told("kod").splitlines()
    assert lines[0].split() == ["CLIENT", "GROUP", "SOURCES", "SLOWED", "SAME", "FASTER"]
    assert lines[3].split() == ["chrony", "kissed", "70", "56", "(80%)", "14", "(20%)", "0", "(0%)"]
    assert "chrony   KoD helps: +20 % slow down (95 %: +5 to +33)" in lines
    assert "unknown  too few yet: 3 kissed, 0 control, 10 of each are needed" in lines


def test_the_metrics_say_the_same(guard: Path) -> None:
    note(guard, Group.KISSED, after=4, count=5)
    note(guard, Group.CONTROL, after=64, count=2)
    found = {k: v for k, v in scrape(guard).items() if "kod" in k or "deaf" in k}
    name = 'ntpguard_kod_sources{change="%s",client="chrony",group="%s"}'
    assert found[name % ("slowed", "kissed")] == 5
    assert found[name % ("faster", "control")] == 2
    assert sum(v for k, v in found.items() if k.startswith("ntpguard_kod_sources")) == 7
    assert len([k for k in found if k.startswith("ntpguard_kod_sources")]) == len(CLIENTS) * 6
    for one in ("ntpguard_kods_heeded_total", "ntpguard_kods_unheeded_total"):
        assert found[one] == 0
    assert found["ntpguard_sources_deaf"] == 0


def test_a_guard_that_tried_nobody_yet_says_so(guard: Path) -> None:
    lines = told("kod").splitlines()
    assert lines[-1] == "all  too few yet: 0 kissed, 0 control, 10 of each are needed"
    told("mode", "observe")
    assert told("kod").startswith("mode is observe: nobody is kissed, no trial begins")
    assert data("kod")["mode"] == "observe"


def test_where_no_class_is_kissed_it_says_so(where: Path) -> None:
    up(where, policy=parse_policy(POLICY + "enabled = false\n"))
    assert told("kod").startswith("kod.enabled is false: nobody is kissed")
    assert data("kod")["kod"] is False


def test_a_source_of_the_control_group_is_said_to_be_one_and_never_accused(guard: Path) -> None:
    with maps.descriptor(bpffs.pins(guard) / "table") as fd:
        raw = libbpf.map_lookup(fd, bytes(4), abi.size(abi.Table))
    assert raw
    table = abi.Table.from_buffer_copy(raw)
    seed = (int(table.seed[0]), int(table.seed[1]))
    addresses = [f"203.0.113.{n}" for n in range(1, 255)]
    control = next(one for one in addresses if part(one, seed) == abi.PART_CONTROL)
    with packets(guard) as send:
        for _ in range(3):
            assert send(IPV4.but(source=control)) != abi.Xdp.TX
    assert "kod        never kissed: it is in the control group of ntpguard kod" in told(
        "show", control
    )
    assert "never kissed" in data("show", control)["next_request"]
    assert data("show", control)["last_kod"] is None
    found = data("kod")
    assert found["undecided"] == 1
    assert found["clients"][0]["control"]["sources"] == 0


def test_kod_needs_a_running_guard(where: Path) -> None:
    done = subprocess.run([NTPGUARD, "kod"], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.startswith("ntpguard: not running")
