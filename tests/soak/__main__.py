"""make soak MINUTES=n: hours of attack, changes, restarts and scrapes in the lab; writes RESULT.json.

A real chronyd behind `ntpguard run`; two real chronyds and 200 simulated clients that are polite;
each minute another attack, and every few seconds an operator's command drawn by chance. In the first
third the daemon is killed and restarted, and the interface is taken down and up: what grows is to be
seen in the last half, in one process that has had time to fill what it keeps. The episodes that have
ended would not be as many as are kept until the last third: it begins with them, as a server does that
has run for months.
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
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path

from ntpguard import __version__, episodes, reading
from ntpguard.daemon.book import MOST_ENDED
from ntpguard.episodes import Episode, Kept
from tests import NTPGUARD
from tests.bpf.packets import Frame
from tests.lab.demo import overflowed
from tests.lab.generator import Load
from tests.lab.lab import (
    CLIENT,
    CLIENT4,
    CLIENT6,
    PEERS,
    SERVER,
    SERVER4,
    SERVER6,
    Daemon,
    Lab,
    inside,
    namespace,
    packet_socket,
    run,
    set_buffer,
)
from tests.soak.attack import ENDLESS, SORTS, frames
from tests.soak.commands import BROKEN, COMMANDS, POLICIES
from tests.soak.judge import Client, Minute, complaints
from tests.soak.seen import Held, driver, programs, tree

RESULT = Path(__file__).with_name("RESULT.json")
BUFFER_BYTES = 4 * 2**20
POLITE_PER_SECOND, HASTY_PER_SECOND, FLOOD_PER_SECOND = 40.0, 100.0, 50_000.0
ATTACK_PER_SECOND = 5_000
PREPARED = 5_000  # frames of an attack, sent again and again, unless they are to be new
# the real clients ask their server so often, from that address
REAL = {"chronyd4": (SERVER4, CLIENT4), "chronyd6": (SERVER6, CLIENT6)}
PACE = "iburst minpoll 3 maxpoll 3"
SYNCHRONISED = "Selected source"
DOWN_EACH, DOWN_SECONDS, UP_SECONDS = 6, 2.0, 2.0  # minutes; the interface, and until it serves
SETTLE_SECONDS = 1.0
PAUSE_SECONDS = (1.0, 4.0)


@dataclass
class Soak:
    """The lab under load."""

    lab: Lab
    chance: random.Random
    failures: list[str] = field(default_factory=list)
    daemon: Daemon | None = None
    done: dict[str, int] = field(default_factory=dict)
    scrapes: int = 0
    attacked: int = 0  # packets of attacks sent, but for floods; and those that the kernel refused
    refused: int = 0
    downs: int = 0
    _held: dict[int, Held] = field(default_factory=dict)  # the least, by process
    _maps: set[int] = field(default_factory=set)  # ids of all that were ever pinned
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def bpffs(self) -> Path:
        """Where everything is pinned."""
        return Path(os.environ["NTPGUARD_BPFFS"])

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
        new = self.lab.start(SERVER, "guard", command, {"STATE_DIRECTORY": str(self.state)})
        if not new.logged("ready: guards eth0", 30):
            raise AssertionError(new.log.read_text())
        self.daemon = new

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
            self.hold()

    def hold(self) -> None:
        """Notes what the daemon holds, if that is less than before."""
        assert self.daemon
        pid = self.daemon.process.pid
        with contextlib.suppress(OSError, LookupError):  # it has ended
            now = Held.by(pid)
            self._held[pid] = now.least(self._held.get(pid, now))

    def attack(self, sort: str, until: float) -> None:
        """Sends frames of a sort, ATTACK_PER_SECOND of them."""
        _, server = self.lab.link(SERVER)
        _, client = self.lab.link(CLIENT)
        base = Frame(source_mac=client, destination_mac=server, destination=SERVER4)
        made = frames(sort, base, self.chance)
        if sort not in ENDLESS:
            made = cycle([*islice(made, PREPARED)])
        number, begin = 0, time.monotonic()
        with packet_socket() as wire:
            while (now := time.monotonic()) < until:
                while number < (now - begin) * ATTACK_PER_SECOND:
                    number += 1
                    try:
                        wire.send(next(made))
                        self.attacked += 1
                    except OSError as error:
                        if error.errno != errno.ENOBUFS:
                            raise
                        self.refused += 1
                time.sleep(0.01)

    def down_and_up(self, load: Load) -> tuple[int, int, int]:
        """Takes the server's interface down and up; what was sent meanwhile, and polite requests of
        that: sent and answered.
        """

        def so_far() -> tuple[int, int, int]:
            polite = load.sent["polite"] - load.refused["polite"]
            sent = sum(load.sent.values()) - sum(load.refused.values()) + self.attacked
            return sent, polite, self.lab.replies()["polite"][0]

        before = so_far()
        run(*inside(SERVER, "ip", "link", "set", "eth0", "down"))
        time.sleep(DOWN_SECONDS)
        run(*inside(SERVER, "ip", "link", "set", "eth0", "up"))
        self.lab.route()
        time.sleep(UP_SECONDS)
        self.downs += 1
        sent, polite, answered = (b - a for a, b in zip(before, so_far(), strict=True))
        return sent, polite, answered

    def counted(self) -> int:
        """Packets that the guard has a verdict for."""
        with namespace(SERVER), reading.open_running(self.bpffs) as guard:
            return sum(guard.counts().verdicts().values())

    def frames(self) -> int:
        """Those that the driver gave to the program (ethtool -S of a veth)."""
        return driver(SERVER, "rx", "xdp_packets")

    def real(self) -> int:
        """Requests of the real clients, so far."""
        return sum(self.lab.chronyc(CLIENT, name, "ntpdata")["Total TX"] for name in REAL)

    def client(self, name: str) -> Client:
        """A real client, as it says itself."""
        said = self.lab.chronyc(CLIENT, name, "ntpdata")
        kissed = (self.lab.directory / name / "log").read_text().count("Received KoD")
        path = str(self.lab.directory / name / "command")
        chronyc = str(PEERS / "usr/bin/chronyc")
        shown = run(*inside(CLIENT, chronyc, "-h", path, "tracking")).stdout
        normal = re.search(r"Leap status +: Normal", shown) is not None
        return Client(name, said["Total TX"], said["Total RX"], kissed, normal)

    def minute(self, number: int, seconds: float, disturbed: bool) -> Minute:
        """One minute of it all. `disturbed`: with restarts, and the interface down now and then."""
        sort = SORTS[number % len(SORTS)]
        flood = FLOOD_PER_SECOND if sort == "flood" else 0.0
        load = Load(
            self.lab,
            seconds - 2 * SETTLE_SECONDS,
            {"polite": POLITE_PER_SECOND, "hasty": HASTY_PER_SECOND, "abuser": flood},
            {"polite": 200, "hasty": 20, "abuser": 1},
        )
        frames, counted, lost, real = self.frames(), self.counted(), overflowed(), self.real()
        errors = driver(CLIENT, "tx", "xdp_xmit_errors")
        answered = self.lab.replies()["polite"][0]
        self.attacked = self.refused = 0
        self._held.clear()
        down = (0, 0, 0)
        begin = time.monotonic()
        until = begin + load.seconds
        with ThreadPoolExecutor() as threads:
            running = [threads.submit(load.run)]
            if sort != "flood":
                running.append(threads.submit(self.attack, sort, until))
            if disturbed and number % DOWN_EACH == 2:
                self.disturb(begin + load.seconds / 3, disturbed)
                down = self.down_and_up(load)
            self.disturb(until, disturbed)
            for one in running:
                one.result()
        time.sleep(SETTLE_SECONDS)
        assert self.daemon
        failures, self.failures = tuple(self.failures), []
        log = self.daemon.log.read_text(errors="replace")
        if "Traceback" in log or self.daemon.process.poll() is not None:
            failures += (f"the daemon: {log[-500:]}",)
        self.hold()
        pid = self.daemon.process.pid
        held = self._held[pid]
        errors = driver(CLIENT, "tx", "xdp_xmit_errors") - errors
        refused = sum(load.refused.values()) + errors
        kept = episodes.load_numbers()
        assert kept
        return Minute(
            minute=number,
            pid=pid,
            memory_bytes=held.memory_bytes,
            descriptors=held.descriptors,
            threads=held.threads,
            pins=sum(1 for _ in self.bpffs.rglob("*")),
            state_bytes=sum(one.stat().st_size for one in self.state.rglob("*") if one.is_file()),
            programs=programs(self.bpffs, self._maps),
            polite_sent=load.sent["polite"] - load.refused["polite"] - down[1],
            polite_answered=self.lab.replies()["polite"][0] - answered - down[2],
            sent=sum(load.sent.values()) - refused + self.attacked + self.real() - real,
            refused=refused + self.refused,
            frames=self.frames() - frames,
            counted=self.counted() - counted,
            socket_lost=overflowed() - lost,
            down_sent=down[0],
            episodes_open=kept.open,
            episodes_ended=kept.ended,
            failures=failures,
        )

    def stop(self) -> None:
        """No more scrapes."""
        self._stop.set()


def months_of_episodes() -> Kept:
    """As many as are kept, each of a source of its own."""
    now = time.time()
    ended = (
        Episode(
            source=f"198.18.{128 + number // 250}.{1 + number % 250}",
            start=now - 900.0 * number - 600.5,
            last=now - 900.0 * number,
            end=now - 900.0 * number,
            seconds=600.5,
            requests=3000 + number,
            excess=2400 + number,
            peak_per_second=7.25,
            last_per_second=5.5,
            sampled=(600, 10, 1800 + number),
            unheeded=15,
            deaf=True,
            source_port=1024 + number,
            ttls=(64,),
            header=(bytes([0x23]) + os.urandom(47)).hex(),
        )
        for number in range(MOST_ENDED)
    )
    return Kept(written=now, total=MOST_ENDED, ended=tuple(ended))


def main(minutes: int, seconds: float, seed: int, write: bool) -> int:
    """Soaks; returns the exit code."""
    found: list[Minute] = []
    what = tree()
    with Lab(Path("/run/soak")) as lab:
        chronyd = lab.server()
        set_buffer(chronyd.process.pid, BUFFER_BYTES)
        soak = Soak(lab, random.Random(seed))
        soak.state.mkdir()
        os.environ["STATE_DIRECTORY"] = str(soak.state)
        episodes.save(months_of_episodes())
        for name, text in zip(("A", "B", "own"), (*POLICIES, POLICIES[0]), strict=True):
            soak.file(name).write_text(text)
        soak.start()
        lab.guard("show", CLIENT4)
        for name, (server, own) in REAL.items():
            real = lab.chronyd(CLIENT, name, f"server {server} {PACE}\nbindacqaddress {own}")
            if not real.logged(SYNCHRONISED, 30):
                raise AssertionError(real.log.read_text())
        scraping = threading.Thread(target=soak.scrape, daemon=True)
        scraping.start()
        print(f"seed {seed}, {minutes} minutes of {seconds:g} s", flush=True)
        for number in range(minutes):
            one = soak.minute(number, seconds, disturbed=number < minutes / 3)
            found.append(one)
            print(
                f"{number:4} {SORTS[number % len(SORTS)]:10} polite {one.service:6.2f} %  "
                f"{one.counted:9,} counted, {one.sent - one.counted} missing, "
                f"{one.frames - one.counted} others, {one.refused} refused  "
                f"{one.memory_bytes / 2**20:6.1f} MiB {one.descriptors:3} fds {one.threads} threads "
                f"{one.pins} pins {one.programs} programs {one.episodes_open} open "
                f"{one.episodes_ended} ended  lost {one.socket_lost} "
                f"{'; '.join(one.failures)}",
                flush=True,
            )
        soak.stop()
        scraping.join()
        commands, scrapes = dict(sorted(soak.done.items())), soak.scrapes
        clients = [soak.client(name) for name in REAL]
    wrong = complaints(found, clients)
    print(*clients, *wrong, "soaked: " + ("FAILED" if wrong else "well"), sep="\n")
    if write:
        result = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "version": __version__,
            **what,
            "kernel": os.uname().release.split("-")[0],
            "seed": seed,
            "minutes": minutes,
            "seconds_a_minute": seconds,
            "packets_sent": sum(one.sent for one in found),
            "packets_counted": sum(one.counted for one in found),
            "scrapes": scrapes,
            "commands": commands,
            "interface_down": soak.downs,
            "clients": [asdict(one) for one in clients],
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
