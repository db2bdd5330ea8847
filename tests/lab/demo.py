"""make demo: one chronyd, polite, hasty and abusive clients, without the guard and with it.

Everything is made in namespaces of its own (tests/private) and ends with them, even when this is
killed. The exit code is 0 only if every line at the end says true.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ntpguard import reading
from ntpguard.words import Verdict
from tests.lab.generator import Load
from tests.lab.lab import (
    CLIENT,
    CLIENT4,
    KINDS,
    ROOT,
    SERVER,
    SERVER4,
    Daemon,
    Lab,
    inside,
    namespace,
    run,
)

SECONDS = 15.0
SOURCES = {"polite": 200, "hasty": 100, "abuser": 1}
# of all sources of a kind together: a polite one asks every 5 s, a hasty one 8 times a second
PER_SECOND = {"polite": 40.0, "hasty": 800.0, "abuser": 300_000.0}
SETTLE_SECONDS = 1.0
POLICY = "mode = 'enforce'\n[sources]\ncapacity = 65536\n" + "".join(
    f"[[class]]\nname = '{kind}'\nprefixes = ['{network}']\n"
    for kind, network in (
        ("polite", "203.0.113.0/24"),
        ("hasty", "198.18.1.0/24"),
        ("abuser", "198.18.2.0/24"),
    )
)


@dataclass(frozen=True)
class Row:
    """What happened to one kind of simulated client."""

    sent: int
    answered: int
    kissed: int
    dropped: int

    @property
    def lost(self) -> int:
        """Neither answered nor refused: what the flood took."""
        return self.sent - self.answered - self.kissed - self.dropped

    @property
    def share(self) -> float:
        """Share of requests answered, percent."""
        return 100 * self.answered / self.sent if self.sent else 0.0


@dataclass(frozen=True)
class Phase:
    """One run of the load."""

    rows: dict[str, Row]
    received: int  # by chronyd, as it says
    passed: int  # by the guard, as it says
    overflowed: int  # chronyd's receive buffer, as the kernel says


def guard_counts(lab: Lab) -> tuple[dict[str, int], int]:
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


def phase(lab: Lab, title: str, guarded: bool) -> Phase:
    """Runs the load once, and counts."""
    received = lab.server_stats()["NTP packets received"]
    full = overflowed()
    replies = lab.replies()
    dropped, passed = guard_counts(lab) if guarded else (dict.fromkeys(KINDS, 0), 0)
    load = Load(lab, SECONDS, PER_SECOND, SOURCES)
    say(f"{title}: {SECONDS:.0f} s of {PER_SECOND['abuser']:,.0f} abusive requests a second")
    load.run()
    time.sleep(SETTLE_SECONDS)
    replies_now = lab.replies()
    dropped_now, passed_now = guard_counts(lab) if guarded else (dropped, passed)
    rows = {
        kind: Row(
            load.sent[kind],
            replies_now[kind][0] - replies[kind][0],
            replies_now[kind][1] - replies[kind][1],
            dropped_now[kind] - dropped[kind],
        )
        for kind in KINDS
    }
    received_now = lab.server_stats()["NTP packets received"]
    return Phase(rows, received_now - received, passed_now - passed, overflowed() - full)


def say(text: str) -> None:
    """Progress, at once."""
    print(text, flush=True)


def table(title: str, one: Phase) -> None:
    """A phase, for people."""
    say(f"\n{title}")
    say(
        f"{'':8}{'sent':>10}{'answered':>10}{'kissed':>8}{'dropped':>10}{'lost':>10}{'answered':>10}"
    )
    for kind, row in one.rows.items():
        say(
            f"{kind:8}{row.sent:>10}{row.answered:>10}{row.kissed:>8}{row.dropped:>10}"
            f"{row.lost:>10}{row.share:>9.1f}%"
        )
    guard = f"; the guard passed {one.passed}" if one.passed else ""
    say(f"chronyd received {one.received}, its socket lost {one.overflowed}{guard}")


def process_state(server: Daemon) -> tuple[int, str, str]:
    """chronyd's pid, its start time and its configuration."""
    stat = Path(f"/proc/{server.process.pid}/stat").read_text()
    return (
        server.process.pid,
        stat.rpartition(")")[2].split()[19],
        (server.directory / "chrony.conf").read_text(),
    )


def main() -> int:
    """Runs the demonstration inside tests/private."""
    with tempfile.TemporaryDirectory(prefix="ntpguard-demo-") as directory:
        say("making two namespaces, a real chronyd and its clients")
        with Lab(Path(directory)) as lab:
            server = lab.server()
            before = process_state(server)
            without = phase(lab, "without ntpguard", False)
            policy = Path(directory) / "ntpguard.toml"
            policy.write_text(POLICY)
            say(lab.guard("up", "eth0", "--policy", str(policy)).stdout.strip())
            real = lab.chronyd(CLIENT, "hasty", f"server {SERVER4} minpoll -4 maxpoll -4")
            honoured = real.logged("Received KoD RATE", 40)
            real.stop()
            time.sleep(SETTLE_SECONDS)
            guarded = phase(lab, "with ntpguard", True)
            after = process_state(server)
            top = lab.guard("top", "-n", "3").stdout

    table("without ntpguard", without)
    table("with ntpguard", guarded)
    say(f"\nntpguard top -n 3\n{top}")
    say(f"a real chronyd in a hurry, from {CLIENT4}: {honoured or 'honoured no KoD'}\n")
    rows = [*without.rows.values(), *guarded.rows.values()]
    share, share_guarded = without.rows["polite"].share, guarded.rows["polite"].share
    claims = {
        "every row adds up": all(row.lost >= 0 for row in rows),
        f"the guard's passes ({guarded.passed}) equal chronyd's count ({guarded.received}) and what "
        f"its socket lost ({guarded.overflowed})": (
            guarded.passed == guarded.received + guarded.overflowed
        ),
        f"polite clients answered: {share_guarded:.1f} % guarded, {share:.1f} % without": (
            share_guarded >= max(share, 99)
        ),
        "chronyd's configuration, process and pid are unchanged": before == after,
        "the real hasty client honoured the KoD": honoured is not None,
    }
    for text, true in claims.items():
        say(f"{str(true).lower():6} {text}")
    return 0 if all(claims.values()) else 1


def leftovers() -> dict[str, int]:
    """What of the demonstration is still on this machine."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    processes = [
        one
        for one in Path("/proc").glob("[0-9]*/cmdline")
        if one.exists() and str(ROOT / "build/peers").encode() in _read(one)
    ]
    return {
        "namespaces": len(run("ip", "netns", "list").stdout.split()),
        "pins": sum(1 for _ in (ROOT / "build/bpffs").glob("**/*")),
        "mounts": mounts.count(str(ROOT / "build/bpffs")),
        "processes": len(processes),
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def outside() -> int:
    """Runs the demonstration in namespaces of its own, then looks what is left of it."""
    before = leftovers()
    if before["processes"]:
        say(f"an earlier demonstration is still running: {before['processes']} processes")
        return 1
    done = subprocess.run(
        [str(ROOT / "tests/private"), sys.executable, "-m", "tests.lab.demo", "--inside"], cwd=ROOT
    )
    left = {name: count - before[name] for name, count in leftovers().items()}
    say("left behind: " + ", ".join(f"{count} {name}" for name, count in left.items()))
    return 1 if done.returncode or any(left.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main() if "--inside" in sys.argv else outside())
    except KeyboardInterrupt:
        sys.exit(130)
