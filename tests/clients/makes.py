"""The clients: how each is started, or run once, and how its exit tells that it has the time."""

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.clients.net import Seat
from tests.lab import clients
from tests.lab.lab import BUILD, CHRONYD, CLIENT, PEERS, Daemon, inside

NODE_MODULES = BUILD / "clients/node_modules"
NEWER = BUILD / "clients/trixie/root"
NTPLIB = "import ntplib; print(ntplib.NTPClient().request('{}', version=4, timeout=3).offset)"
PERL = "use Net::NTP; my %r = get_ntp_response('{}'); print $r{{'Transmit Timestamp'}}"
RUBY = "require 'net/ntp'; puts Net::NTP.get('{}', 123, 3).time"
NODE = {
    "ntp-client": (
        "require('ntp-client').getNetworkTime({}, 123, (e, d) => "
        "{{ if (e) {{ console.log(String(e)); process.exit(1) }} console.log(d.toISOString()); "
        "process.exit(0) }})"
    ),
    "ntp-time": (
        "new (require('ntp-time').Client)({}, 123, {{timeout: 3000}}).syncTime().then("
        "t => {{ console.log(t.time.toISOString()); process.exit(0) }}, "
        "e => {{ console.log(String(e)); process.exit(1) }})"
    ),
    "@hapi/sntp": (
        "require('@hapi/sntp').time({{host: {}, timeout: 3000}}).then("
        "t => {{ console.log(new Date(t.receivedLocally + t.t).toISOString()); process.exit(0) }}, "
        "e => {{ console.log(String(e)); process.exit(1) }})"
    ),
    "ntp-time-sync": (
        "new (require('ntp-time-sync').NtpTimeSync)({{servers: [{}]}}).getTime().then("
        "t => {{ console.log(t.now.toISOString()); process.exit(0) }}, "
        "e => {{ console.log(String(e)); process.exit(1) }})"
    ),
}


@dataclass(frozen=True)
class Make:
    """One client. `start`: a daemon; `once`: the command that asks these servers and ends, to be
    run again and again. `several`: it takes more than one server.
    """

    name: str
    version: Callable[[], str]
    start: Callable[[Seat, Sequence[str]], Daemon] | None = None
    once: Callable[[Sequence[str]], Sequence[str]] | None = None
    several: bool = False

    def run_once(self, seat: Seat, servers: Sequence[str]) -> tuple[int, str]:
        """Exit code and the last line that it prints."""
        assert self.once
        done = subprocess.run(
            inside(seat.name, "timeout", "12", *self.once(servers)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=NODE_MODULES.parent,
        )
        lines = done.stdout.strip().splitlines()
        return done.returncode, lines[-1][:120] if lines else ""


def _shown(*command: str) -> Callable[[], str]:
    """The first version number that a command prints."""

    def version() -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
        return found[0] if found else "?"

    return version


def _package(name: str) -> Callable[[], str]:
    """Of what is installed, or of what was unpacked into PEERS."""
    return _shown("sh", "-c", f"apt-cache policy {name} | sed -n 3p")


def _npm(name: str) -> Callable[[], str]:
    return _shown("sed", "-n", 's/"version"://p', str(NODE_MODULES / name / "package.json"))


def _newer(path: str, *preload: str) -> tuple[str, ...]:
    """A program of the newer Debian, with that one's libraries."""
    libraries = NEWER / "usr/lib/x86_64-linux-gnu"
    loader = (str(libraries / "ld-linux-x86-64.so.2"), "--library-path")
    return (*loader, f"{libraries}:{libraries}/systemd", *preload, str(NEWER / path))


NEWER_CHRONYD = _newer("usr/sbin/chronyd")
NEWER_NTPD = _newer("usr/sbin/ntpd")
NEWER_TIMESYNCD = _newer("usr/lib/systemd/systemd-timesyncd")


def _chronyd(*program: str) -> Callable[[Seat, Sequence[str]], Daemon]:
    def start(seat: Seat, servers: Sequence[str]) -> Daemon:
        lines = [f"server {one} iburst minpoll 1 maxpoll 6" for one in servers]
        return seat.chronyd(CLIENT, "chronyd", "\n".join(lines), program=program)

    return start


def _ntpsec(*program: str) -> Callable[[Seat, Sequence[str]], Daemon]:
    options = "iburst minpoll 3 maxpoll 6"
    return lambda seat, servers: clients.ntpsec(seat, servers, options, program=program)


def _timesyncd(*program: str) -> Callable[[Seat, Sequence[str]], Daemon]:
    polls = ("PollIntervalMinSec=16", "PollIntervalMaxSec=32")
    return lambda seat, servers: clients.timesyncd(seat, servers, *polls, program=program)


def _ntpd_rs(seat: Seat, servers: Sequence[str]) -> Daemon:
    program = _newer("usr/bin/ntp-daemon", "--preload", str(clients.build_clock()))
    file = seat.directory / "ntp.toml"
    file.write_text(
        "[source-defaults]\npoll-interval-limits = { min = 4, max = 6 }\n"
        "initial-poll-interval = 4\n[synchronization]\nminimum-agreeing-sources = 1\n"
        + "".join(f'[[source]]\nmode = "server"\naddress = "{one}"\n' for one in servers)
    )
    file.chmod(0o644)
    return seat.start(CLIENT, "ntpd-rs", [*program, "-c", str(file), "-l", "debug"], {})


def _ntpdig(servers: Sequence[str]) -> Sequence[str]:
    environment = f"PYTHONPATH={PEERS}/usr/lib/python3/dist-packages"
    return ("env", environment, "python3", str(PEERS / "usr/bin/ntpdig"), "-t", "3", *servers)


def _of_one(*command: str) -> Callable[[Sequence[str]], Sequence[str]]:
    """A command that names one server, where it has {}."""
    return lambda servers: [word.format(servers[0]) for word in command]


def _node(script: str) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda servers: ("node", "-e", script.format(", ".join(f"'{one}'" for one in servers)))


MAKES = (
    Make("chronyd", _package("chrony"), _chronyd(*CHRONYD), several=True),
    Make("chronyd", _shown(*NEWER_CHRONYD, "-v"), _chronyd(*NEWER_CHRONYD), several=True),
    Make("ntpsec ntpd", _package("ntpsec"), _ntpsec(*clients.NTPD), several=True),
    Make("ntpsec ntpd", _shown(*NEWER_NTPD, "-V"), _ntpsec(*NEWER_NTPD), several=True),
    Make("ntpd-rs", _shown(*_newer("usr/bin/ntp-daemon"), "-v"), _ntpd_rs, several=True),
    Make("OpenNTPD", _package("openntpd"), clients.openntpd, several=True),
    Make("busybox ntpd", _package("busybox"), clients.busybox, several=True),
    Make(
        "systemd-timesyncd",
        _package("systemd-timesyncd"),
        _timesyncd(*clients.TIMESYNCD),
        several=True,
    ),
    Make(
        "systemd-timesyncd",
        _shown(*NEWER_TIMESYNCD, "--version"),
        _timesyncd(*NEWER_TIMESYNCD),
        several=True,
    ),
    Make("ntpdig", _package("ntpsec-ntpdig"), once=_ntpdig, several=True),
    Make("rdate -n", _package("rdate"), once=_of_one("rdate", "-n", "-p", "-v", "{}")),
    Make("toybox sntp", _package("toybox"), once=_of_one("toybox", "sntp", "{}")),
    Make(
        "check_ntp_time",
        _package("monitoring-plugins-basic"),
        once=_of_one("/usr/lib/nagios/plugins/check_ntp_time", "-H", "{}"),
    ),
    Make(
        "Python ntplib",
        _package("python3-ntplib"),
        once=_of_one("/usr/bin/python3", "-c", NTPLIB),
    ),
    Make("Perl Net::NTP", _package("libnet-ntp-perl"), once=_of_one("perl", "-e", PERL)),
    Make("Ruby Net::NTP", _package("ruby-net-ntp"), once=_of_one("ruby", "-e", RUBY)),
    *(
        Make(f"npm {name}", _npm(name), once=_node(script), several=name == "ntp-time-sync")
        for name, script in NODE.items()
    ),
)


def install() -> None:
    """What comes from npm."""
    folder = NODE_MODULES.parent
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in NODE if not (NODE_MODULES / name).exists()]
    if missing:
        quiet = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
        subprocess.run([*quiet, *missing], cwd=folder, check=True)


if __name__ == "__main__":
    install()
