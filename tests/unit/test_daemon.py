"""The daemon's parts that need no kernel: what systemd is told, the last good copy, the words."""

import errno
import os
import socket
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from ntpguard.daemon import lastgood, links
from ntpguard.daemon.loop import levelled
from ntpguard.daemon.notify import notify, reloading, watchdog_seconds
from ntpguard.errors import NtpguardError, PolicyError
from ntpguard.kernel.interfaces import Interface
from ntpguard.policy.check import parse_policy

ETH0 = Interface("eth0", 2, bytes(5) + b"\1", True, "none", None, True)
GUARDED = {2}


@pytest.mark.parametrize("name", ["@ntpguard-test-{}", "{}/notify"])
def test_systemd_is_told_on_its_socket_also_an_abstract_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = name.format(os.getpid() if name.startswith("@") else tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        assert notify("READY=1", "STATUS=guards eth0")
        assert manager.recv(100) == b"READY=1\nSTATUS=guards eth0"
        reloading()
        first, second = manager.recv(100).decode().splitlines()
        assert (first, second.partition("=")[0]) == ("RELOADING=1", "MONOTONIC_USEC")


def test_without_systemd_nothing_is_told_and_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")


def test_the_watchdog_is_told_twice_in_its_time_by_the_process_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_seconds() == 15
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_seconds() == 15
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert watchdog_seconds() is None
    monkeypatch.delenv("WATCHDOG_PID")
    monkeypatch.delenv("WATCHDOG_USEC")
    assert watchdog_seconds() is None


def test_the_last_good_policy_is_read_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/state:{tmp_path}/second")
    assert lastgood.read() is None
    (tmp_path / "banned.txt").write_text("203.0.113.0/24\n")
    policy = parse_policy(
        'interfaces = ["eth0"]\n[limit]\nrate = "7/minute"\n'
        '[[class]]\nname = "banned"\nprefixes_file = "banned.txt"\naction = "block"\n',
        base=tmp_path,
    )
    lastgood.save(policy, tmp_path / "ntpguard.toml")
    (tmp_path / "banned.txt").unlink()
    assert lastgood.read() == policy
    assert os.listdir(tmp_path / "state") == [lastgood.NAME]
    (tmp_path / "state" / lastgood.NAME).write_bytes(b"\xff[")
    with pytest.raises(PolicyError, match=lastgood.NAME):
        lastgood.read()


def test_a_state_directory_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "file"))
    with pytest.raises(NtpguardError, match=os.strerror(errno.EEXIST)):
        lastgood.save(parse_policy(""), tmp_path)


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (ETH0, []),
        (replace(ETH0, xdp="native", program_id=7), []),
        (None, ["eth0: gone (interface 2): waiting until it is back"]),
        (replace(ETH0, name="wan"), ["eth0: renamed to wan: it stays guarded"]),
        (replace(ETH0, is_up=False), ["eth0: set down"]),
        (
            replace(ETH0, mac=bytes(6)),
            ["eth0: its MAC address was 00:00:00:00:00:01, now 00:00:00:00:00:00"],
        ),
        (
            replace(ETH0, ifindex=3),
            ["eth0: gone (interface 2): waiting until it is back", "eth0: there now (interface 3)"],
        ),
    ],
)
def test_each_change_of_an_interface_is_one_line(after: Interface | None, told: list[str]) -> None:
    now = {after.ifindex: after} if after else {}
    assert list(links.changes({2: ETH0}, now, ("eth0",), GUARDED)) == told
    # of others, nothing is told
    assert list(links.changes({2: ETH0}, now, (), ())) == []


def test_many_addresses_are_counted() -> None:
    many = {ip_address(f"198.51.100.{i}") for i in range(1, 21)}
    words = links.address_change({ip_address("2001:db8::1")}, many)
    assert words.startswith("local addresses: 198.51.100.1, ")
    assert words.endswith("and 12 more added; 2001:db8::1 gone")


def test_the_journal_gets_levels_and_people_get_words(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    for journal in (False, True):
        if journal:
            monkeypatch.setenv("JOURNAL_STREAM", "8:1")
        else:
            monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        log = levelled(lines.append, quiet=False)
        for write in (log.info, log.warn, log.error):
            write("so")
    levelled(lines.append, quiet=True).info("not told")
    people = ["ntpguard: so", "ntpguard: warning: so", "ntpguard: error: so"]
    assert lines == [*people, "<6>so", "<4>so", "<3>so"]
