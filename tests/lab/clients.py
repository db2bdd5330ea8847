"""Real clients of several makes, each with a log that tells what it got. None can set the clock."""

from collections.abc import Sequence

from tests.lab.lab import BUILD, CLIENT, PEERS, Daemon, Lab


def ntpsec(lab: Lab, server: str, options: str) -> Daemon:
    """ntpsec's ntpd."""
    directory = lab.directory / "ntpd"
    directory.mkdir()
    file = directory / "ntp.conf"
    # disable ntp: the clock is not disciplined
    file.write_text(f"disable ntp\nlogconfig =allall\nserver {server} {options}\n")
    return lab.start(CLIENT, "ntpd", [str(PEERS / "usr/sbin/ntpd"), "-n", "-c", str(file)], {})


def busybox(lab: Lab, server: str) -> Daemon:
    """busybox ntpd; -w: only ask."""
    command = [str(BUILD / "busybox/ntpd"), "-n", "-w", "-d", "-d", "-p", server]
    return lab.start(CLIENT, "busybox", command, {})


def openntpd(
    lab: Lab, servers: Sequence[str], *, namespace: str = CLIENT, serve: bool = False
) -> Daemon:
    """OpenNTPD, with the user and the directories that its package would have made."""
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
    return lab.start(namespace, "openntpd", ["unshare", "--mount", "sh", "-c", script], {})


def timesyncd(lab: Lab, server: str) -> Daemon:
    """systemd-timesyncd, as nobody; it finds no system bus in our /run."""
    script = (
        "mount -t tmpfs tmpfs /var/lib && mount -t tmpfs tmpfs /run"
        " && mkdir -p /run/systemd/timesync /run/systemd/timesyncd.conf.d /var/lib/systemd/timesync"
        f" && printf '[Time]\\nNTP={server}\\n' >/run/systemd/timesyncd.conf.d/lab.conf"
        " && chown -R 65534:65534 /run/systemd /var/lib/systemd"
        " && exec setpriv --reuid 65534 --regid 65534 --clear-groups"
        f" {PEERS}/lib/systemd/systemd-timesyncd"
    )
    environment = {"SYSTEMD_LOG_LEVEL": "debug", "SYSTEMD_LOG_TARGET": "console"}
    command = ["unshare", "--mount", "sh", "-c", script]
    return lab.start(CLIENT, "timesyncd", command, environment)
