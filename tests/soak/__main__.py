"""make soak MINUTES=n: hours of attack, changes, restarts and scrapes in the lab; writes RESULT.json.

A real chronyd behind `ntpguard run`; 200 polite simulated clients; each minute another attack, and
every few seconds an operator's command drawn by chance. The daemon is killed and restarted in the
first half only, so that what grows can be seen in the last third.
"""

import argparse
import contextlib
import ctypes
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ntpguard import __version__, reading
from ntpguard.kernel import bpffs
from tests import NTPGUARD
from tests.bpf.packets import Frame
from tests.lab.demo import overflowed
from tests.lab.generator import Load
from tests.lab.lab import (
    CLIENT,
    CLIENT4,
    SERVER,
    SERVER4,
    Daemon,
    Lab,
    inside,
    namespace,
    packet_socket,
    run,
    set_buffer,
)
from tests.soak.attack import SORTS, frames
from tests.soak.judge import Minute, complaints

RESULT = Path(__file__).with_name("RESULT.json")
BUFFER_BYTES = 4 * 2**20
POLITE_PER_SECOND, HASTY_PER_SECOND, FLOOD_PER_SECOND = 40.0, 100.0, 50_000.0
ATTACK_PER_SECOND = 2_000
SETTLE_SECONDS = 1.0
PAUSE_SECONDS = (1.0, 4.0)
POLICIES = (
    'interfaces = ["eth0"]\nmode = "enforce"\n[sources]\ncapacity = 65536\n',
    'interfaces = ["eth0"]\nmode = "enforce"\n[sources]\ncapacity = 65536\n[limit]\nrate = "90/minute"\n'
    '[[class]]\nname = "polite"\nprefixes = ["203.0.113.0/24", "2001:db8:71::/48"]\n'
    '[[class]]\nname = "hasty"\nprefixes = ["198.18.1.0/24"]\nrate = "1/second"\nburst = 16\n'
    '[[signature]]\nname = "nixie"\nsource_port = 1337\naction = "block"\n',
)
BROKEN = 'interfaces = ["eth0"]\nmode = "enforced"\n[limit]\nrate = 3\n'
# what an operator types, and the exit codes that are no failure
COMMANDS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("status", (0, 1)),
    ("top -n 20", (0,)),
    ("top --by prefix", (0,)),
    ("top --sort requests", (0,)),
    ("kod", (0,)),
    ("episodes", (0,)),
    ("entries", (0,)),
    ("doctor", (0, 1)),
    ("policy diff", (0,)),
    ("policy describe", (0,)),
    ("show 198.18.1.7", (0,)),
    ("show 203.0.113.9", (0,)),
    ("limit list", (0,)),
    ("limit set --rate 120/minute --burst 64", (0,)),
    ("limit set --burst 40 --for 20s", (0,)),
    ("limit unset", (0,)),
    ("block 198.18.8.0/24 --for 5s --reason soak", (0,)),
    ("block 198.18.9.7", (0,)),
    ("exempt 198.18.9.8 --for 10s", (0,)),
    ("clear 198.18.9.7", (0, 2)),  # there is none
    ("mode observe --for 2s", (0,)),
    ("mode enforce", (0,)),
    ("policy apply A", (0,)),
    ("policy apply B", (0,)),
    ("up eth0 --policy A", (0,)),
)


@dataclass
class Soak:
    """The lab under load."""

    lab: Lab
    chance: random.Random
    failures: list[str] = field(default_factory=list)
    daemon: Daemon | None = None
    done: dict[str, int] = field(default_factory=dict)
    scrapes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def state(self) -> Path:
        """The daemon's state directory."""
        return self.lab.directory / "state"

    def file(self, name: str) -> Path:
        """The policies, A and B, and the one that the daemon reads."""
        return self.lab.directory / f"{name}.toml"

    def start(self) -> None:
        """ntpguard run, until it guards."""
        command = [NTPGUARD, "run", "--policy", str(self.file("own"))]
        self.daemon = self.lab.start(SERVER, "guard", command, {"STATE_DIRECTORY": str(self.state)})
        if not self.daemon.logged("ready: guards eth0", 30):
            raise AssertionError(self.daemon.log.read_text())

    def operate(self) -> None:
        """One command by chance."""
        words, allowed = self.chance.choice(COMMANDS)
        arguments = [str(self.file(one)) if one in ("A", "B") else one for one in words.split()]
        done = self.lab.guard(*arguments, check=False)
        self.done[words] = self.done.get(words, 0) + 1
        if done.returncode not in allowed or "Traceback" in done.stderr:
            self.failures.append(f"{words}: {done.returncode}: {done.stderr[-300:]}")

    def reload(self, text: str) -> None:
        """SIGHUP with another file."""
        assert self.daemon
        self.file("own").write_text(text)
        self.daemon.process.send_signal(signal.SIGHUP)
        self.done["SIGHUP"] = self.done.get("SIGHUP", 0) + 1

    def restart(self, how: signal.Signals) -> None:
        """Ends the daemon, and begins another."""
        assert self.daemon
        self.file("own").write_text(POLICIES[0])
        self.daemon.process.send_signal(how)
        self.daemon.process.wait(30)
        self.start()
        self.done[how.name] = self.done.get(how.name, 0) + 1

    def disturb(self, until: float, restarts: bool) -> None:
        """Commands by chance, until then."""
        while time.monotonic() < until:
            draw = self.chance.random()
            if draw < 0.06:
                self.reload(self.chance.choice((*POLICIES, BROKEN)))
            elif draw < 0.10 and restarts:
                self.restart(self.chance.choice((signal.SIGTERM, signal.SIGKILL)))
            else:
                self.operate()
            time.sleep(self.chance.uniform(*PAUSE_SECONDS))

    def scrape(self) -> None:
        """/metrics and the page, each second; a daemon that is being restarted does not answer."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{SERVER}") as there:
            assert libc.setns(there.fileno(), 0x40000000) == 0
        while not self._stop.wait(1.0):
            with contextlib.suppress(OSError):
                for path in ("/metrics", "/"):
                    with urllib.request.urlopen(f"http://127.0.0.1:9721{path}", timeout=10) as one:
                        if b"ntpguard" not in one.read():
                            self.failures.append(f"scrape of {path}: empty")
                self.scrapes += 1

    def attack(self, sort: str, until: float) -> int:
        """Sends frames of a sort, ATTACK_PER_SECOND of them; how many."""
        _, server = self.lab.link(SERVER)
        _, client = self.lab.link(CLIENT)
        base = Frame(source_mac=client, destination_mac=server, destination=SERVER4)
        made = [*islice(frames(sort, base, self.chance), 20_000)]
        sent, begin = 0, time.monotonic()
        with packet_socket() as wire:
            while (now := time.monotonic()) < until:
                while sent < (now - begin) * ATTACK_PER_SECOND:
                    try:
                        wire.send(made[sent % len(made)])
                    except OSError as error:
                        if error.errno != errno.ENOBUFS:
                            raise
                    sent += 1
                time.sleep(0.01)
        return sent

    def counted(self) -> int:
        """Packets that the guard has a verdict for."""
        with namespace(SERVER), reading.open_running(bpffs.directory(None)) as guard:
            return sum(guard.counts().verdicts().values())

    def frames(self) -> int:
        """Those that the driver gave to the program (ethtool -S of a veth)."""
        shown = run(*inside(SERVER, "ethtool", "-S", "eth0")).stdout
        return sum(int(one) for one in re.findall(r"rx_queue_\d+_xdp_packets: (\d+)", shown))

    def minute(self, number: int, seconds: float, restarts: bool) -> Minute:
        """One minute of it all."""
        sort = SORTS[number % len(SORTS)]
        flood = FLOOD_PER_SECOND if sort == "flood" else 0.0
        load = Load(
            self.lab,
            seconds - 2 * SETTLE_SECONDS,
            {"polite": POLITE_PER_SECOND, "hasty": HASTY_PER_SECOND, "abuser": flood},
            {"polite": 200, "hasty": 20, "abuser": 1},
        )
        frames_before, counted_before = self.frames(), self.counted()
        replies_before, lost_before = self.lab.replies()["polite"][0], overflowed()
        until = time.monotonic() + load.seconds
        with ThreadPoolExecutor() as threads:
            running = [threads.submit(load.run)]
            if sort != "flood":
                running.append(threads.submit(self.attack, sort, until))
            self.disturb(until, restarts)
            for one in running:
                one.result()
        time.sleep(SETTLE_SECONDS)
        assert self.daemon
        failures, self.failures = tuple(self.failures), []
        log = self.daemon.log.read_text(errors="replace")
        if "Traceback" in log or self.daemon.process.poll() is not None:
            failures += (f"the daemon: {log[-500:]}",)
        pid = self.daemon.process.pid
        status = Path(f"/proc/{pid}/status").read_text()
        return Minute(
            number,
            pid,
            int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024,
            len(os.listdir(f"/proc/{pid}/fd")),
            int(re.findall(r"Threads:\s+(\d+)", status)[0]),
            sum(1 for _ in Path(os.environ["NTPGUARD_BPFFS"]).rglob("*")),
            sum(one.stat().st_size for one in self.state.rglob("*") if one.is_file()),
            programs(),
            load.sent["polite"],
            self.lab.replies()["polite"][0] - replies_before,
            self.frames() - frames_before,
            self.counted() - counted_before,
            overflowed() - lost_before,
            failures,
        )

    def stop(self) -> None:
        """No more scrapes."""
        self._stop.set()


def programs() -> int:
    """XDP programs of our name that the kernel holds, on the whole machine."""
    shown = subprocess.run(["bpftool", "-j", "prog", "list"], capture_output=True, text=True)
    return sum(one.get("name") == "ntpguard" for one in json.loads(shown.stdout))


def main(minutes: int, seconds: float, seed: int, write: bool) -> int:
    """Soaks; returns the exit code."""
    found: list[Minute] = []
    with Lab(Path("/run/soak")) as lab:
        chronyd = lab.server()
        set_buffer(chronyd.process.pid, BUFFER_BYTES)
        soak = Soak(lab, random.Random(seed))
        soak.state.mkdir()
        for name, text in zip(("A", "B", "own"), (*POLICIES, POLICIES[0]), strict=True):
            soak.file(name).write_text(text)
        soak.start()
        lab.guard("show", CLIENT4)
        scraping = threading.Thread(target=soak.scrape, daemon=True)
        scraping.start()
        print(f"seed {seed}, {minutes} minutes of {seconds:g} s", flush=True)
        for number in range(minutes):
            one = soak.minute(number, seconds, restarts=number < minutes // 2)
            found.append(one)
            print(
                f"{number:4} {SORTS[number % len(SORTS)]:10} polite {one.service:6.2f} %  "
                f"{one.counted:9,} counted, {one.frames - one.counted:4} others  "
                f"{one.memory_bytes / 2**20:6.1f} MiB {one.descriptors:3} fds {one.threads} threads "
                f"{one.pins} pins  lost {one.socket_lost} {'; '.join(one.failures)}",
                flush=True,
            )
        soak.stop()
        scraping.join()
        commands, scrapes = dict(sorted(soak.done.items())), soak.scrapes
    wrong = complaints(found)
    print(*wrong, "soaked: " + ("FAILED" if wrong else "well"), sep="\n")
    if write:
        result = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "version": __version__,
            "kernel": os.uname().release.split("-")[0],
            "seed": seed,
            "minutes": minutes,
            "packets_counted": sum(one.counted for one in found),
            "scrapes": scrapes,
            "commands": commands,
            "complaints": wrong,
            "by_minute": [one.figures() for one in found],
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("minutes", type=int)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each minute")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--write", action="store_true", help="tests/soak/RESULT.json")
    options = parser.parse_args()
    sys.exit(main(options.minutes, options.seconds, options.seed, options.write))
