"""make demo: one chronyd, polite, hasty and abusive clients, without the guard and with it.

Everything is made in namespaces of its own (tests/private) and ends with them, even when this is
killed. The exit code is 0 only if every line at the end says true.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from ntpguard import reading
from ntpguard.words import Verdict
from tests.lab.generator import Load
from tests.lab.lab import (
    CLIENT,
    CLIENT4,
    KINDS,
    NETWORKS,
    ROOT,
    SERVER,
    SERVER4,
    SERVER6,
    Daemon,
    Lab,
    inside,
    namespace,
    run,
)

SECONDS = 20.0
SOURCES = {"polite": 200, "hasty": 100, "abuser": 1}
# of all sources of a kind together: a polite one asks every 5 s, a hasty one 8 times a second
PER_SECOND = {"polite": 40.0, "hasty": 800.0, "abuser": 300_000.0}
PROGRESS_SECONDS = 4.0
SETTLE_SECONDS = 1.0
POLITE4 = "198.51.100.3"
# the real polite clients: each asks its server once a second, from that source
REAL = {
    "chronyd4": (SERVER4, POLITE4, f"{POLITE4}/32"),
    "chronyd6": (SERVER6, "::", "2001:db8::/64"),
}
PREFIXES = {**NETWORKS, **{name: (prefix,) for name, (_, _, prefix) in REAL.items()}}
POLITE = ("polite", *REAL)
POLICY = "[sources]\ncapacity = 65536\n" + "".join(
    f"[[class]]\nname = '{kind}'\nprefixes = {list(prefixes)}\n"
    for kind, prefixes in PREFIXES.items()
)
MARK = f"NTPGUARD_DEMO={ROOT}"  # in the environment of every process of the demonstration


@dataclass(frozen=True)
class Row:
    """What happened to one kind of client."""

    sent: int
    answered: int
    kissed: int
    dropped: int

    def __sub__(self, earlier: "Row") -> "Row":
        return Row(
            self.sent - earlier.sent,
            self.answered - earlier.answered,
            self.kissed - earlier.kissed,
            self.dropped - earlier.dropped,
        )

    @property
    def lost(self) -> int:
        """Neither answered nor refused: what the flood took."""
        return self.sent - self.answered - self.kissed - self.dropped


@dataclass(frozen=True)
class Phase:
    """All counts so far, or those of one run of the load."""

    rows: dict[str, Row]
    received: int  # by chronyd, as it says
    passed: int  # by the guard, as it says
    overflowed: int  # chronyd's receive buffer, as the kernel says

    def __sub__(self, earlier: "Phase") -> "Phase":
        return Phase(
            {kind: row - earlier.rows[kind] for kind, row in self.rows.items()},
            self.received - earlier.received,
            self.passed - earlier.passed,
            self.overflowed - earlier.overflowed,
        )

    @property
    def polite_share(self) -> float:
        """Share of the requests of polite clients, simulated and real, that were answered; percent."""
        rows = [self.rows[kind] for kind in POLITE]
        return 100 * sum(row.answered for row in rows) / (sum(row.sent for row in rows) or 1)


def guard_counts() -> tuple[dict[str, int], int]:
    """Drops by kind, and passes in all, as the guard counts."""
    with namespace(SERVER), reading.open_running(Path(os.environ["NTPGUARD_BPFFS"])) as guard:
        names = [one.name for one in guard.policy().classes]
        dropped = dict.fromkeys(names, 0)
        passed = 0
        for cell in guard.counts().happened:
            if cell.verdict == Verdict.DROP:
                dropped[names[cell.class_index]] += cell.packets
            elif cell.verdict == Verdict.PASS:
                passed += cell.packets
    return dropped, passed


def overflowed() -> int:
    """Datagrams that found the receive buffer of their socket full, on the server."""
    lines = run(*inside(SERVER, "cat", "/proc/net/snmp")).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Udp:"))
    return int(values[names.index("RcvbufErrors")])


def count(lab: Lab, sent: dict[str, int], guarded: bool) -> Phase:
    """Everything that is counted, so far."""
    dropped, passed = guard_counts() if guarded else (dict.fromkeys(PREFIXES, 0), 0)
    replies = lab.replies()
    rows = {kind: Row(sent[kind], *replies[kind], dropped[kind]) for kind in KINDS}
    for name in REAL:
        said = lab.chronyc(CLIENT, name, "ntpdata")
        kissed = (lab.directory / name / "log").read_text().count("Received KoD")
        rows[name] = Row(said["Total TX"], said["Total RX"] - kissed, kissed, dropped[name])
    return Phase(rows, lab.received(), passed, overflowed())


def phase(lab: Lab, title: str, guarded: bool, seconds: float) -> Phase:
    """Runs the load once, and counts."""
    load = Load(lab, seconds, PER_SECOND, SOURCES)
    before = count(lab, load.sent, guarded)
    say(f"{title}: {seconds:g} s of {PER_SECOND['abuser']:,.0f} abusive requests a second")
    for name in REAL:
        lab.chronyc(CLIENT, name, "online")
    begin = time.monotonic()
    with ThreadPoolExecutor() as threads:
        running = threads.submit(load.run)
        while wait([running], PROGRESS_SECONDS).not_done:
            done = [
                f"{kind} {answered - before.rows[kind].answered:,} of {load.sent[kind]:,}"
                for kind, (answered, _) in lab.replies().items()
            ]
            say(f"{time.monotonic() - begin:4.0f} s  answered: {', '.join(done)}")
        running.result()
    for name in REAL:
        lab.chronyc(CLIENT, name, "offline")
    time.sleep(SETTLE_SECONDS)
    return count(lab, load.sent, guarded) - before


def say(text: str) -> None:
    """Progress, at once."""
    print(text, flush=True)


def table(title: str, one: Phase) -> None:
    """A phase, for people."""
    say(f"\n{title}")
    say(
        f"{'':10}{'sent':>10}{'answered':>10}{'kissed':>8}{'dropped':>10}{'lost':>10}{'answered':>10}"
    )
    for kind, row in one.rows.items():
        say(
            f"{kind:10}{row.sent:>10}{row.answered:>10}{row.kissed:>8}{row.dropped:>10}"
            f"{row.lost:>10}{100 * row.answered / (row.sent or 1):>9.1f}%"
        )
    guard = f"; the guard passed {one.passed}" if one.passed else ""
    say(f"chronyd received {one.received}, its socket lost {one.overflowed}{guard}")


def process_state(server: Daemon) -> tuple[int, str, str]:
    """chronyd's pid, its start time and its configuration."""
    stat = Path(f"/proc/{server.process.pid}/stat").read_text()
    return (
        server.process.pid,
        stat.rpartition(")")[2].split()[19],
        "".join(path.read_text() for path in sorted(server.directory.glob("**/*.conf"))),
    )


def main(seconds: float) -> int:
    """Runs the demonstration inside tests/private; returns its exit code."""
    say("making two namespaces, a real chronyd and its clients")
    with Lab(Path("/run/demo")) as lab:
        server = lab.server()
        before = process_state(server)
        run(*inside(CLIENT, "ip", "address", "add", f"{POLITE4}/24", "dev", "eth0"))
        for name, (address, own, _) in REAL.items():
            pace = f"server {address} minpoll 0 maxpoll 0 offline"
            lab.chronyd(CLIENT, name, f"{pace}\nbindacqaddress {own}")
        without = phase(lab, "without ntpguard", False, seconds)
        policy = server.directory / "etc/ntpguard/ntpguard.toml"
        policy.write_text(policy.read_text() + POLICY)
        shown = lab.guard("up", "--policy", str(policy)).stdout.strip()
        while not lab.kisses(CLIENT4):  # one source in 16 is never kissed, by a hash that is new
            lab.guard("down")
            shown = lab.guard("up", "--policy", str(policy)).stdout.strip()
        say(shown)
        real = lab.hasty()
        honoured = real.logged("Received KoD RATE", 40)
        real.stop()
        time.sleep(SETTLE_SECONDS)
        guarded = phase(lab, "with ntpguard", True, seconds)
        after = process_state(server)
        top = lab.guard("top", "-n", "3").stdout

    table("without ntpguard", without)
    table("with ntpguard", guarded)
    say("polite: 200 simulated sources, IPv4 and IPv6; chronyd4, chronyd6: a real, polite one each")
    say(f"\nntpguard top -n 3\n{top}")
    say(f"a real chronyd in a hurry, from {CLIENT4}: {honoured or 'honoured no KoD'}\n")
    rows = [*without.rows.values(), *guarded.rows.values()]
    share, share_guarded = without.polite_share, guarded.polite_share
    claims = {
        "every row adds up": all(row.sent and row.lost >= 0 for row in rows),
        f"the guard's passes ({guarded.passed}) equal chronyd's count ({guarded.received}) and what "
        f"its socket lost ({guarded.overflowed})": (
            guarded.passed == guarded.received + guarded.overflowed
        ),
        f"polite clients, simulated and real, answered: {share_guarded:.1f} % guarded, "
        f"{share:.1f} % without": share_guarded >= max(share, 99),
        "chronyd's configuration, process and pid are unchanged": before == after,
        "the real hasty client honoured the KoD": honoured is not None,
    }
    for text, true in claims.items():
        say(f"{str(true).lower():6} {text}")
    return 0 if all(claims.values()) else 1


def leftovers() -> dict[str, int]:
    """What of the demonstration is still on this machine."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    ours = (str(ROOT / "build/bpffs"), "/run/demo", "/run/netns/")
    return {
        "namespaces": len(run("ip", "netns", "list").stdout.splitlines()),
        "pins": sum(1 for _ in (ROOT / "build/bpffs").glob("**/*")),
        "mounts": sum(line.split()[1].startswith(ours) for line in mounts),
        "processes": sum(
            MARK.encode() in _read(one) for one in Path("/proc").glob("[0-9]*/environ")
        ),
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has ended, or is not ours


def settled(before: dict[str, int], within: float = 10) -> dict[str, int]:
    """What is left more than `before`; the kernel gets time to end what was killed."""
    end = time.monotonic() + within
    while True:
        left = {name: number - before[name] for name, number in leftovers().items()}
        if not any(left.values()) or time.monotonic() > end:
            return left
        time.sleep(0.1)


def outside(arguments: Sequence[str]) -> int:
    """Runs the demonstration in namespaces of its own, then looks what is left of it."""
    if running := settled(leftovers() | {"processes": 0})["processes"]:
        say(f"an earlier demonstration is still running: {running} processes")
        return 1
    before = leftovers()
    own_pid = os.getpid()

    def end_with_parent() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != own_pid:
            os._exit(1)

    environment = {name: value for name, value in os.environ.items() if name != "NTPGUARD_PRIVATE"}
    name, _, value = MARK.partition("=")
    command = [str(ROOT / "tests/private"), sys.executable, "-m", "tests.lab.demo", "--inside"]
    try:
        code = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env={**environment, name: value},
            preexec_fn=end_with_parent,
        ).returncode
    except KeyboardInterrupt:
        say("interrupted")
        code = 130
    left = settled(before)
    say("left behind: " + ", ".join(f"{number} {name}" for name, number in left.items()))
    return code or (1 if any(left.values()) else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load, each time")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        sys.exit(main(options.seconds) if options.inside else outside(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
