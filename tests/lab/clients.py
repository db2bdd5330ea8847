"""Real clients of several makes, each with a log that tells what it got. None can set the clock."""

from collections.abc import Sequence
from pathlib import Path

from tests.lab.lab import BUILD, CLIENT, PEERS, Daemon, Lab, run

NTPD = (str(PEERS / "usr/sbin/ntpd"),)
TIMESYNCD = (str(PEERS / "lib/systemd/systemd-timesyncd"),)
CLOCK = BUILD / "clock.so"


def build_clock() -> Path:
    """What answers calls that would set the clock, for daemons that go on only if they succeed."""
    source = Path(__file__).with_name("clock.c")
    if not CLOCK.exists() or CLOCK.stat().st_mtime < source.stat().st_mtime:
        run("clang", "-O2", "-fPIC", "-shared", "-nostdlib", str(source), "-o", str(CLOCK))
    return CLOCK


def ntpsec(
    lab: Lab, servers: Sequence[str], options: str, *, program: Sequence[str] = NTPD
) -> Daemon:
    """ntpsec's ntpd."""
    directory = lab.directory / "ntpd"
    directory.mkdir()
    file = directory / "ntp.conf"
    # disable ntp: the clock is not disciplined
    file.write_text(
        "disable ntp\nlogconfig =allall\n" + "".join(f"server {one} {options}\n" for one in servers)
    )
    return lab.start(CLIENT, "ntpd", [*program, "-n", "-c", str(file)], {})


def busybox(lab: Lab, servers: Sequence[str]) -> Daemon:
    """busybox ntpd; -w: only ask."""
    peers = [word for one in servers for word in ("-p", one)]
    command = [str(BUILD / "busybox/ntpd"), "-n", "-w", "-d", "-d", *peers]
    return lab.start(CLIENT, "busybox", command, {})


def openntpd(
    lab: Lab, servers: Sequence[str], *, namespace: str = CLIENT, serve: bool = False
) -> Daemon:
    """OpenNTPD, with the user and the directories that its package would have made. One that serves
    believes that it sets the clock: it answers as unsynchronized until it has.
    """
    directory = lab.directory / "openntpd"
    directory.mkdir()
    (directory / "conf").write_text(
        "".join(f"server {one}\n" for one in servers) + "listen on *\n" * serve
    )
    (directory / "passwd").write_text("root:x:0:0::/:\nntpd:x:120:120::/run/openntpd:\n")
    (directory / "group").write_text("root:x:0:\nntpd:x:120:\n")
    script = (
        f"mount --bind {directory}/passwd /etc/passwd && mount --bind {directory}/group /etc/group"
        " && mount -t tmpfs tmpfs /var/lib"
        " && mkdir -p /run/openntpd /var/lib/openntpd/db /var/lib/openntpd/run"
        f" && exec {PEERS}/openntpd/usr/sbin/ntpd -d -v -f {directory}/conf"
    )
    environment = {"LD_PRELOAD": str(build_clock())} if serve else {}
    return lab.start(namespace, "openntpd", ["unshare", "--mount", "sh", "-c", script], environment)


def timesyncd(
    lab: Lab, servers: Sequence[str], *more: str, program: Sequence[str] = TIMESYNCD
) -> Daemon:
    """systemd-timesyncd, as nobody; it finds no system bus in our /run."""
    lines = " ".join(f"'{one}'" for one in ("[Time]", f"NTP={' '.join(servers)}", *more))
    script = (
        "mount -t tmpfs tmpfs /var/lib && mount -t tmpfs tmpfs /run"
        " && mkdir -p /run/systemd/timesync /run/systemd/timesyncd.conf.d /var/lib/systemd/timesync"
        f" && printf '%s\\n' {lines} >/run/systemd/timesyncd.conf.d/lab.conf"
        " && chown -R 65534:65534 /run/systemd /var/lib/systemd"
        f" && exec setpriv --reuid 65534 --regid 65534 --clear-groups {' '.join(program)}"
    )
    environment = {"SYSTEMD_LOG_LEVEL": "debug", "SYSTEMD_LOG_TARGET": "console"}
    command = ["unshare", "--mount", "sh", "-c", script]
    return lab.start(CLIENT, "timesyncd", command, environment)
