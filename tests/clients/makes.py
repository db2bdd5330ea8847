"""The clients: how each is started, or run once, and how its log or exit tells that it has the time."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.clients.net import Seat
from tests.lab import clients
from tests.lab.lab import BUILD, CLIENT, PEERS, SERVER4, inside

NODE_MODULES = BUILD / "clients/node_modules"
NTPLIB = "import ntplib; print(ntplib.NTPClient().request('{server}', version=4, timeout=3).offset)"
PERL = "use Net::NTP; my %r = get_ntp_response('{server}'); print $r{{'Transmit Timestamp'}}"
NODE = {
    "ntp-client": (
        "require('ntp-client').getNetworkTime('{server}', 123, (e, d) => "
        "{{ if (e) {{ console.log(String(e)); process.exit(1) }} console.log(d.toISOString()); "
        "process.exit(0) }})"
    ),
    "ntp-time": (
        "new (require('ntp-time').Client)('{server}', 123, {{timeout: 3000}}).syncTime().then("
        "t => {{ console.log(t.time.toISOString()); process.exit(0) }}, "
        "e => {{ console.log(String(e)); process.exit(1) }})"
    ),
    "@hapi/sntp": (
        "require('@hapi/sntp').time({{host: '{server}', timeout: 3000}}).then("
        "t => {{ console.log(new Date(t.receivedLocally + t.t).toISOString()); process.exit(0) }}, "
        "e => {{ console.log(String(e)); process.exit(1) }})"
    ),
}


@dataclass(frozen=True)
class Make:
    """One client. `start`: a daemon; `once`: a command that asks and ends, again and again."""

    name: str
    version: Callable[[], str]
    start: Callable[[Seat], object] | None = None
    once: tuple[str, ...] = ()

    def run_once(self, seat: Seat) -> tuple[int, str]:
        """Exit code and the last line that it prints."""
        done = subprocess.run(
            inside(seat.name, "timeout", "12", *self.once),
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


def _chronyd(seat: Seat) -> object:
    return seat.chronyd(CLIENT, "chronyd", f"server {SERVER4} iburst minpoll 1 maxpoll 6")


MAKES = (
    Make("chronyd", _package("chrony"), _chronyd),
    Make(
        "ntpsec ntpd",
        _package("ntpsec"),
        lambda seat: clients.ntpsec(seat, SERVER4, "iburst minpoll 3 maxpoll 6"),
    ),
    Make("OpenNTPD", _package("openntpd"), lambda seat: clients.openntpd(seat, [SERVER4])),
    Make(
        "busybox ntpd",
        _package("busybox"),
        lambda seat: clients.busybox(seat, SERVER4),
    ),
    Make(
        "systemd-timesyncd",
        _package("systemd-timesyncd"),
        lambda seat: clients.timesyncd(seat, SERVER4),
    ),
    Make(
        "ntpdig",
        _package("ntpsec-ntpdig"),
        once=(
            "env",
            f"PYTHONPATH={PEERS}/usr/lib/python3/dist-packages",
            "python3",
            str(PEERS / "usr/bin/ntpdig"),
            "-t",
            "3",
            SERVER4,
        ),
    ),
    Make("rdate -n", _package("rdate"), once=("rdate", "-n", "-p", "-v", SERVER4)),
    Make(
        "Python ntplib",
        _package("python3-ntplib"),
        once=("/usr/bin/python3", "-c", NTPLIB.format(server=SERVER4)),
    ),
    Make(
        "Perl Net::NTP",
        _package("libnet-ntp-perl"),
        once=("perl", "-e", PERL.format(server=SERVER4)),
    ),
    *(
        Make(f"npm {name}", _npm(name), once=("node", "-e", script.format(server=SERVER4)))
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


def path_of(name: str) -> Path:
    """A folder's name for a client."""
    return Path(re.sub(r"\W+", "-", name))


if __name__ == "__main__":
    install()
