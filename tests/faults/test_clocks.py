"""A clock that is set, a machine that was suspended, a container with clocks of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ntpguard import episodes
from ntpguard.abi import Xdp
from ntpguard.daemon.book import AT_ONCE
from tests import NTPGUARD
from tests.bpf.daemon import running, wait_for
from tests.bpf.live import data, packets, told
from tests.bpf.packets import IPV4
from tests.bpf.test_lifecycle import pytestmark, up, where

__all__ = ["pytestmark", "where"]
# when Unix began, when 32 bits without a sign end, and between
BEGINNING, LATE, NOON, LATER, EARLIER = 86400, 2**32 - 86400, 1780315200, 1780315210, 1780311600
# a process whose clocks differ from the kernel's, and from those of a machine that never slept
AHEAD = ("unshare", "--time", "--fork", "--monotonic", "100000", "--boottime", "100000")
BEHIND = ("unshare", "--time", "--fork", "--monotonic", "-60", "--boottime", "-60")
SUSPENDED = ("unshare", "--time", "--fork", "--boottime", "7200")  # for two hours
QUICKLY = """
from ntpguard.daemon import loop, watching
from ntpguard.cli import main
loop.CLEAN_SECONDS = loop.WATCH_SECONDS = loop.LOOK_SECONDS = watching.SAVE_SECONDS = 0.1
main()
"""
FLOOD = 'interfaces = ["guard0"]\nmode = "enforce"\n[sources]\ncapacity = 4096\n'


@pytest.fixture
def clock(tmp_path: Path) -> "Clock":
    """A wall clock that the test sets."""
    library = tmp_path / "wall.so"
    source = Path(__file__).with_name("wall.c")
    subprocess.run(
        ["clang", "-shared", "-fPIC", "-Wno-unused-result", "-o", library, source], check=True
    )
    return Clock(library, tmp_path / "wall")


@dataclass(frozen=True)
class Clock:
    library: Path
    file: Path

    def set(self, seconds: int) -> None:
        """To so many seconds since 1970; it stands still."""
        self.file.write_text(f"{seconds}")

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that goes by it."""
        return {"LD_PRELOAD": str(self.library), "WALL": str(self.file)}

    def said(self, *arguments: str) -> Any:
        """What a command says that goes by it."""
        return said(*arguments, **self.environment)


def said(*arguments: str, wrap: tuple[str, ...] = (), **environment: str) -> Any:
    done = subprocess.run(
        [*wrap, NTPGUARD, "-o", "json", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def left(shown: dict[str, Any]) -> float:
    """Seconds until the only live entry expires."""
    (one,) = shown["data"]
    return (when(one["expires"]) - when(shown["time"])).total_seconds()


def until(shown: dict[str, Any]) -> datetime:
    return when(shown["data"]["mode_until"])


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize("wall", [BEGINNING, LATE])
def test_what_is_temporary_lasts_as_long_whatever_the_wall_clock_is_set_to(
    where: Path, clock: Clock, wall: int
) -> None:
    year = str(datetime.fromtimestamp(wall, UTC).year)
    clock.set(wall)
    up(where)
    clock.said("block", "203.0.113.0/24", "--for", "1h")
    told("mode", "observe", "--for", "1h")
    told("limit", "set", "--rate", "7/minute", "--for", "1h")
    assert 3500 < left(said("entries")) <= 3600
    assert 3500 < left(clock.said("entries")) <= 3600
    shown = clock.said("status")["data"]
    assert (shown["mode"], shown["mode_after"]) == ("observe", "enforce")
    assert shown["mode_until"][:4] == year
    assert clock.said("limit", "list")["data"][0]["until"][:4] == year
    # what was set when the clock was wrong goes with the packet path's clock too
    clock.said("mode", "enforce", "--for", "1h")
    with packets(where) as send:
        assert send(IPV4) == Xdp.DROP
        assert clock.said("clear", "203.0.113.0/24")["data"]["prefix"] == "203.0.113.0/24"
        assert send(IPV4) == Xdp.PASS
    shown = said("status")
    assert 3500 < (until(shown) - when(shown["time"])).total_seconds() <= 3600


@pytest.mark.parametrize("wrap", [AHEAD, BEHIND, SUSPENDED], ids=["ahead", "behind", "suspended"])
def test_a_time_in_another_time_namespace_is_the_packet_paths(
    where: Path, wrap: tuple[str, ...]
) -> None:
    up(where)
    said("block", "203.0.113.0/24", "--for", "1h", wrap=wrap)
    said("mode", "enforce", "--for", "1h", wrap=wrap)
    for shown in (said("entries", wrap=wrap), said("entries")):
        assert 3500 < left(shown) <= 3600
    assert abs(until(said("status", wrap=wrap)) - until(said("status"))) < timedelta(seconds=5)
    with packets(where) as send:
        assert send(IPV4) == Xdp.DROP
    assert said("top", wrap=wrap)["data"] == data("top")


def test_a_survey_is_as_old_as_it_is_in_another_time_namespace(where: Path) -> None:
    up(where)
    age = (
        "from tests.bpf.test_exporter import scrape; from ntpguard.kernel import bpffs; "
        "print(scrape(bpffs.directory(None))['ntpguard_survey_age_seconds'])"
    )
    done = subprocess.run(
        [*AHEAD, sys.executable, "-c", age], capture_output=True, text=True, check=True
    )
    assert 0 <= float(done.stdout) < 60


def test_a_daemon_whose_clock_is_set_to_and_fro_loses_and_ends_nothing(
    where: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.set(NOON)
    faked = (
        "env",
        *(f"{name}={value}" for name, value in clock.environment.items()),
        *(sys.executable, "-c", QUICKLY),
    )
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    with running(tmp_path, policy=FLOOD, command=faked) as daemon, packets(where) as send:
        told("block", "203.0.113.0/24", "--for", "1h")
        told("limit", "set", "--rate", "7/minute", "--for", "1h")
        abuser = IPV4.but(source="198.18.0.9")
        for _ in range(AT_ONCE + 1000):
            send(abuser)
        for wall in (BEGINNING, LATER, LATE, EARLIER):
            clock.set(wall)

            def kept(wall: int = wall) -> bool:
                for _ in range(20):
                    send(abuser)
                found = episodes.load()
                return bool(found and int(found.written) == wall)

            wait_for(kept, f"episodes are written at {wall}: {daemon.log()}")
            assert send(IPV4) == Xdp.DROP
            assert 3400 < left(said("entries")) <= 3600
            assert data("limit", "list")[0]["rate"] == "7/minute"
            (one,) = data("episodes", "list")
            assert (one["source"], one["end"]) == ("198.18.0.9", None)
            assert 0 <= one["seconds"] < 600
            told("episodes", "report", "198.18.0.9")
        assert daemon.log().count("abuse begins") == 1
        assert "abuse ends" not in daemon.log() and "expired" not in daemon.log()
