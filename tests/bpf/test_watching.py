"""Episodes of abuse, from the packets to the report: a daemon, and what it keeps."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ntpguard import episodes
from ntpguard.cli import main
from ntpguard.cli.episodes import NONE
from ntpguard.daemon.book import AT_ONCE
from ntpguard.daemon.guarding import Log
from ntpguard.daemon.watching import LINES_A_MINUTE, Watching
from ntpguard.episodes import Episode, Kept
from ntpguard.kernel import bpffs, interfaces, maps
from ntpguard.policy.check import parse_policy
from tests import NTPGUARD, testrun
from tests.bpf.daemon import POLICY, Daemon, running, wait_for
from tests.bpf.live import data, told
from tests.bpf.packets import CLIENT4, IPV4, IPV6, Frame
from tests.bpf.test_exporter import scrape
from tests.bpf.test_lifecycle import NAMES, pytestmark, up, where

__all__ = ["pytestmark", "where"]
# looks five times a second, and says so
OFTEN = (
    sys.executable,
    "-c",
    """
import sys
from ntpguard.daemon import loop, watching

class Telling(watching.Watching):
    def look(self):
        super().look()
        print("looked", file=sys.stderr, flush=True)

loop.Watching, loop.WATCH_SECONDS, watching.SAVE_SECONDS = Telling, 0.2, 0.2
from ntpguard.cli import main
main()
""",
)
FIRST = 198 << 24 | 18 << 16
STRICT = 'mode = "enforce"\n[sources]\ncapacity = 65536\n[limit]\nrate = "1/minute"\nburst = 2\n'


def burst(where: Path, frame: Frame, count: int) -> None:
    """The same frame again and again."""
    own = next(iter(bpffs.attached(bpffs.pins(where)).values()))
    raw = bytes(frame.but(destination_mac=interfaces.interface(NAMES[0]).mac))
    with maps.descriptor(own / "program") as program:
        for _ in range(count):
            testrun.run(program, raw)


def looked(one: Daemon) -> None:
    """Returns when a look has begun and ended since."""
    one.logs("looked", one.log().count("looked") + 2)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_flood_is_logged_listed_and_reported(where: Path, tmp_path: Path) -> None:
    assert told("episodes") == NONE + "\n"
    with running(tmp_path, policy=POLICY, command=OFTEN) as one:
        burst(where, IPV4, 100)
        looked(one)  # what it did before is not known
        burst(where, IPV4, AT_ONCE + 100)
        one.logs(f"abuse begins: {CLIENT4} at up to ")
        (found,) = data("episodes")
        assert found["source"] == f"{CLIENT4}" and found["end"] is None
        assert AT_ONCE <= found["excess"] <= found["requests"] <= AT_ONCE + 200
        assert found["rules_broken"][0].startswith("1: it polled more often")
        table = told("episodes")
        assert table.splitlines()[0].split() == [
            "SOURCE", "START", "FOR", "REQUESTS", "PEAK/s", "KOD", "CLIENT",
        ]  # fmt: skip
        assert f"{CLIENT4}" in table and "goes on" in table
        report = told("episodes", "report", CLIENT4)
        assert f"NTP requests in excess from {CLIENT4} to " in report
        assert "The server's access policy: at most 60/minute from one source" in report
        assert f"NTP header   {IPV4.payload.hex()}" in report
        assert report.rstrip().endswith("this one, or one that forges its address.")
        metrics = scrape(where)
        assert metrics["ntpguard_episodes_total"] == metrics["ntpguard_episodes_open"] == 1
    # what it kept goes on after a restart
    with running(tmp_path, policy=POLICY, command=OFTEN) as one:
        for _ in range(3):
            burst(where, IPV4, 50)
            looked(one)
        wait_for(lambda: data("episodes")[0]["requests"] > found["requests"], "it grows")
        assert len(data("episodes")) == 1


def test_a_source_without_an_episode_is_an_error_that_says_so() -> None:
    episodes.save(Kept())
    done = CliRunner().invoke(main, ["episodes", "report", "203.0.113.99"])
    assert done.exit_code == 1
    assert "203.0.113.99: no episode of it is kept: ntpguard episodes lists them" in done.output
    assert told("episodes") == NONE + "\n"


def test_who_may_not_read_them_is_told_what_it_needs(state: Path) -> None:
    episodes.save(Kept())
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    done = subprocess.run([*nobody, NTPGUARD, "episodes"], capture_output=True, text=True)
    assert done.returncode == 5
    assert "CAP_DAC_OVERRIDE (root) is needed: try sudo" in done.stderr


def test_a_damaged_file_is_set_aside_and_the_command_says_what_to_do(
    state: Path, where: Path
) -> None:
    state.mkdir()
    episodes.path().write_text("{")
    done = CliRunner().invoke(main, ["episodes"])
    assert done.exit_code == 1 and "move it away" in done.output
    warnings: list[str] = []
    Watching(where, Log(print, warnings.append, print))
    assert len(warnings) == 1 and "episodes begin anew" in warnings[0]
    assert (state / "episodes.damaged").read_text() == "{"
    assert not episodes.path().exists()


def test_a_report_is_of_one_source() -> None:
    two = (Episode(f"203.0.113.{n}", 1.8e9, 1.8e9 + 60, requests=90, excess=60) for n in (7, 9))
    episodes.save(Kept(open=tuple(two)))
    done = CliRunner().invoke(main, ["episodes", "report", "203.0.113.0/24"])
    assert done.exit_code == 2
    assert "2 sources of it have episodes: write one of 203.0.113.7, 203.0.113.9" in done.output
    assert "seen until 1970-01-01" in told("episodes")  # no daemon has looked lately


def test_ten_thousand_attackers_cost_a_look_little_and_few_lines(where: Path) -> None:
    up(where, policy=parse_policy(STRICT))
    lines: list[str] = []
    watching = Watching(where, Log(lines.append, lines.append, lines.append))
    looks, bursts = [], []
    own = next(iter(bpffs.attached(bpffs.pins(where)).values()))
    frame = bytes(IPV4.but(destination_mac=interfaces.interface(NAMES[0]).mac))
    head, tail = frame[:26], frame[30:]  # around the source address
    with maps.descriptor(own / "program") as program:
        for _ in range(4):
            begin = time.monotonic()
            for number in range(10_000):
                packet = head + (FIRST + number).to_bytes(4, "big") + tail
                for _ in range(6):
                    testrun.run(program, packet)
            looked = time.monotonic()
            watching.look()
            bursts.append(looked - begin)
            looks.append(time.monotonic() - looked)
    print("ms:", [[round(1000 * one) for one in each] for each in (bursts, looks)])
    assert sorted(looks)[1] < min(bursts)  # less than to send what it looks at
    assert len(lines) <= LINES_A_MINUTE


def test_a_full_disk_is_told_once_and_stops_nothing(
    where: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(where)
    warnings: list[str] = []
    watching = Watching(where, Log(print, warnings.append, print))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ntpguard.state.os.fsync", full)
    burst(where, IPV6, 100)
    watching.look()
    for _ in range(3):
        burst(where, IPV6, AT_ONCE + 100)
        watching.look()
    assert warnings == [f"{episodes.path()}: cannot keep episodes: No space left on device"]


def test_a_source_that_is_forgotten_and_comes_again_is_followed(where: Path) -> None:
    kept = Kept(total=3)
    episodes.save(replace(kept, untold=2))
    up(where)
    Watching(where, Log(print, print, print)).look()
    found = episodes.load()
    assert found and (found.total, found.untold) == (3, 2)
