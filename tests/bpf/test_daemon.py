"""ntpguard run: start, take-over, reload, what it follows, what it tells, how it ends."""

import fcntl
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from ntpguard import lifecycle
from ntpguard.cli import main
from ntpguard.daemon import lastgood
from ntpguard.daemon.privileges import NEEDED
from ntpguard.entries import read_entries
from ntpguard.kernel import bpffs, libbpf, maps
from ntpguard.running import mapped
from tests import NTPGUARD
from tests.bpf.daemon import OFTEN, POLICY, Daemon, running, wait_for
from tests.bpf.live import data, told
from tests.bpf.test_health import status
from tests.bpf.test_lifecycle import (
    BRIDGE,
    NAMES,
    PEER,
    compile_object,
    guarded,
    ip,
    load_time,
    pytestmark,
    running_policy,
    where,
)

__all__ = ["pytestmark", "where"]
SLOWER = '[limit]\nrate = "30/minute"\n'
# cleans ten times a second
BOTH = POLICY.replace(f'"{NAMES[0]}"', f'"{NAMES[0]}", "{NAMES[1]}"')


def links(at: Path) -> set[int]:
    found = set()
    for own in bpffs.attached(bpffs.pins(at)).values():
        with maps.descriptor(own / "link") as fd:
            found.add(libbpf.link_info(fd).id)
    return found


def rate(at: Path) -> str:
    return str(running_policy(at).classes[0].rate)


def not_running() -> bool:
    shown = CliRunner().invoke(main, ["status"])
    return (shown.exit_code, "not running: nothing is attached" in shown.output) == (4, True)


def recreate(name: str) -> None:
    ip("link", "add", name, "type", "veth", "peer", "netns", PEER)
    ip("link", "set", name, "up")


def test_it_attaches_tells_systemd_and_leaves_enforcement_when_stopped(
    where: Path, tmp_path: Path
) -> None:
    (tmp_path / "ntpguard.toml").write_text(POLICY)
    one = Daemon(tmp_path)
    try:
        assert one.ready() == f"guards {NAMES[0]}"
        assert (guarded(), status()) == ([NAMES[0]], (0, []))
        one.told("WATCHDOG=1")
        one.told("WATCHDOG=1")
        one.process.terminate()
        one.told("STOPPING=1")
        assert one.process.wait(60) == 0
        assert one.log().endswith(f'{NAMES[0]} stays guarded (on_exit = "keep")\n')
        assert (guarded(), status()) == ([NAMES[0]], (0, []))
    finally:
        one.kill()


def test_on_exit_detach_takes_all_down(where: Path, tmp_path: Path) -> None:
    with running(tmp_path, policy=f'on_exit = "detach"\n{POLICY}') as one:
        assert guarded() == [NAMES[0]]
    assert guarded() == []
    assert f'{NAMES[0]} detached (on_exit = "detach")' in one.log()


def test_what_is_attached_is_taken_over_with_its_live_changes(where: Path, tmp_path: Path) -> None:
    file = tmp_path / "ntpguard.toml"
    file.write_text(POLICY)
    told("up", "--policy", str(file))
    told("limit", "set", "--rate", "7/minute", "--for", "1h")
    told("mode", "observe")
    before = links(where)
    with running(tmp_path) as one:
        assert f"{NAMES[0]}: taken over" in one.log()
        assert links(where) == before
        assert (rate(where), data("status")["mode"]) == ("7/minute", "observe")
        one.kill()
        # also after a crash; a policy that has changed is applied as it is
        with running(tmp_path):
            assert (rate(where), data("status")["mode"]) == ("7/minute", "observe")
    with running(tmp_path, policy=POLICY + SLOWER):
        assert links(where) == before
        assert (rate(where), data("status")["mode"]) == ("30/minute", "enforce")


def test_a_reload_applies_a_good_file_and_refuses_a_bad_one(where: Path, tmp_path: Path) -> None:
    with running(tmp_path) as one:
        before, since = links(where), time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        one.reload(BOTH + SLOWER)
        assert int(one.told("RELOADING=1", "MONOTONIC_USEC")["MONOTONIC_USEC"]) >= since
        assert one.ready() == f"guards {NAMES[0]}, {NAMES[1]}"
        assert (guarded(), rate(where), before < links(where)) == (list(NAMES), "30/minute", True)

        one.reload(BOTH.replace("4096", '"x"') + '[limit]\nrate = "many"\n')
        assert "degraded: policy file refused" in one.ready()
        assert re.search(r"error: .*toml:4: sources.capacity: ", one.log())
        assert re.search(r"error: .*toml:6: limit.rate: ", one.log())
        code, (problem,) = status()
        assert (code, rate(where), guarded()) == (1, "30/minute", list(NAMES))
        assert re.search(
            r"refused, the one applied .* runs: .*sources.capacity.*\(and 1 more\)", problem
        )
        one.told("WATCHDOG=1")  # it still runs

        # good by itself, but the table was made for another capacity
        one.reload(BOTH.replace("4096", "8192"))
        assert "run ntpguard down first" in one.ready()
        assert status()[0] == 1

        one.reload(BOTH)
        assert one.ready() == f"guards {NAMES[0]}, {NAMES[1]}"
        assert (status(), rate(where)) == ((0, []), "60/minute")


def test_an_interface_is_waited_for_and_followed_through_all_its_changes(
    where: Path, tmp_path: Path
) -> None:
    ip("link", "del", NAMES[1])
    with running(tmp_path, policy=BOTH) as one:
        assert f"warning: {NAMES[1]}: no such interface: waiting" in one.log()
        told("limit", "set", "--rate", "7/minute")
        told("block", "203.0.113.0/24")
        recreate(NAMES[1])
        one.logs(f"{NAMES[1]}: guarded")
        assert guarded() == list(NAMES)

        ip("link", "set", NAMES[1], "address", "02:00:00:00:00:77")
        one.logs(f"{NAMES[1]}: guarded for its new MAC address")
        assert bytes(load_time(where, NAMES[1]).mac) == bytes.fromhex("020000000077")

        ip("link", "set", NAMES[1], "down")
        one.logs(f"{NAMES[1]}: set down")
        ip("link", "set", NAMES[1], "name", BRIDGE)
        one.logs(f"{NAMES[1]}: renamed to {BRIDGE}: it stays guarded")
        assert guarded() == [NAMES[0], BRIDGE]
        recreate(NAMES[1])
        one.logs(f"{NAMES[1]}: guarded", 3)
        assert set(guarded()) == {*NAMES, BRIDGE}
        ip("link", "set", BRIDGE, "up")
        one.logs(f"{BRIDGE}: set up")

        for name in (BRIDGE, *NAMES):
            ip("link", "del", name)
            one.logs(f"{name}: gone")
        recreate(NAMES[0])
        one.logs(f"{NAMES[0]}: guarded", 2)
        # the maps outlive the last interface: what was changed live holds
        assert (guarded(), rate(where)) == ([NAMES[0]], "7/minute")
        code, (problem,) = status()
        assert (code, problem.partition(",")[0]) == (1, f"{NAMES[1]}: no such interface")
        assert [one["prefix"] for one in data("entries")] == ["203.0.113.0/24"]


def test_addresses_that_a_kod_may_be_sent_from_are_followed(where: Path, tmp_path: Path) -> None:
    def known(address: str) -> bool:
        with maps.opened(bpffs.pins(where)) as descriptors:
            keys = set(libbpf.map_keys(descriptors["addresses"], 16))
        return mapped(ipaddress.ip_address(address)) in keys

    with running(tmp_path) as one:
        for address in ("198.51.100.9/24", "2001:db8::9/64"):
            plain = address.partition("/")[0]
            assert not known(plain)
            ip("address", "add", address, "dev", NAMES[0], *(["nodad"] if ":" in plain else []))
            wait_for(lambda plain=plain: known(plain), plain)  # type: ignore[misc]
            ip("address", "del", address, "dev", NAMES[0])
            wait_for(lambda plain=plain: not known(plain), plain)  # type: ignore[misc]
        one.logs("local addresses: 198.51.100.9 added")
        one.logs("198.51.100.9 gone")


def test_what_another_command_takes_down_stays_down_until_it_is_told(
    where: Path, tmp_path: Path
) -> None:
    with running(tmp_path, policy=BOTH, command=OFTEN) as one:
        told("down", NAMES[1])
        one.logs(f"{NAMES[1]}: guarded no more")
        assert guarded() == [NAMES[0]]
        told("down")
        one.logs(f"{NAMES[0]}: guarded no more")
        one.told_status("taken down: systemctl reload")
        ip("link", "set", NAMES[0], "down")
        one.logs(f"{NAMES[0]}: set down")
        assert guarded() == []
        told("up", NAMES[0], "--policy", str(one.file))
        one.logs(f"{NAMES[0]}: guarded by another command")
        one.reload(BOTH)
        wait_for(lambda: guarded() == list(NAMES), "guarded again")


def test_a_bpffs_that_is_unmounted_is_told_and_what_was_there_comes_back(
    where: Path, tmp_path: Path
) -> None:
    with running(tmp_path, command=OFTEN) as one:
        # busy while the daemon looks into it
        wait_for(lambda: not subprocess.run(["umount", str(where)]).returncode, "it is unmounted")
        try:
            one.logs("no bpffs is mounted there")
            one.told_status("degraded")
            assert not_running()
            assert one.silent(2)  # systemd would begin anew
        finally:
            subprocess.run(["mount", "-t", "bpf", "bpf", str(where)], check=True)
        one.logs("mounted there again")
        one.told("WATCHDOG=1")
        assert (guarded(), status()) == ([NAMES[0]], (0, []))


def test_a_look_in_the_middle_of_a_down_sees_it_too(where: Path, tmp_path: Path) -> None:
    with running(tmp_path, command=OFTEN) as one:
        shutil.rmtree(next(iter(bpffs.attached(bpffs.pins(where)).values())))
        one.logs("guarded no more")
        shutil.rmtree(bpffs.pins(where))
        one.told_status("taken down: systemctl reload")


def test_pins_that_are_removed_by_hand_are_told(where: Path, tmp_path: Path) -> None:
    with running(tmp_path, policy=BOTH, command=OFTEN) as one:
        (bpffs.pins(where) / "leak").unlink()
        one.logs("no leak in it")
        one.told_status("no leak in it")
        shown = CliRunner().invoke(main, ["status"])
        assert (shown.exit_code, "no leak in it" in shown.output) == (1, True)
        assert guarded() == list(NAMES)
        shutil.rmtree(bpffs.pins(where))
        one.logs("guarded no more", 2)
        assert (guarded(), not_running()) == ([], True)
        one.reload(BOTH)
        wait_for(lambda: guarded() == list(NAMES), "guarded again")


def test_another_program_on_an_interface_is_left_there(where: Path, tmp_path: Path) -> None:
    own = compile_object(
        tmp_path,
        'SEC("xdp") int other(struct xdp_md *packet) { return XDP_PASS; }\nchar _license[] SEC("license") = "GPL";',
    )
    ip("link", "del", NAMES[1])
    with running(tmp_path, policy=BOTH, command=OFTEN) as one:
        ip("link", "add", NAMES[1], "type", "veth", "peer", "name", NAMES[1], "netns", PEER)
        one.logs(f"{NAMES[1]}: guarded, xdp native")
        told("down", NAMES[1])
        one.logs(f"{NAMES[1]}: guarded no more")
        ip("link", "set", NAMES[1], "xdp", "obj", str(own), "sec", "xdp")
        one.reload(BOTH)
        one.logs("another XDP program is attached")
        assert "policy file refused" in one.told("READY=1")["STATUS"]
        ip("link", "set", NAMES[1], "xdp", "off")
        one.reload(BOTH)
        wait_for(lambda: guarded() == list(NAMES), "guarded again")


def test_expired_entries_are_removed(where: Path, tmp_path: Path) -> None:
    with running(tmp_path, command=OFTEN) as one:
        told("block", "203.0.113.0/24", "--for", "1s")
        told("exempt", "2001:db8::/48", "--for", "1s")
        told("block", "198.51.100.0/24")
        wait_for(
            lambda: one.log().count("expired and removed") > 0 and stored(where) == 1, "removed"
        )
        with maps.opened(bpffs.pins(where)) as descriptors:
            assert [str(one.prefix) for one in read_entries(descriptors)] == ["198.51.100.0/24"]


def stored(at: Path) -> int:
    with maps.opened(bpffs.pins(at)) as descriptors:
        return sum(
            len(list(libbpf.map_keys(descriptors[name], size)))
            for name, size in (("entries_ipv4", 8), ("entries_ipv6", 20))
        )


def test_another_writer_is_not_waited_for(where: Path, tmp_path: Path) -> None:
    """Who holds the lock may be stopped, or slow: the daemon lives on, and tries again."""
    with running(tmp_path, command=OFTEN) as one:
        fd = os.open(where / "ntpguard", os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        one.reload(POLICY + SLOWER)
        one.told("RELOADING=1")
        one.told("WATCHDOG=1")
        one.told("WATCHDOG=1")
        assert rate(where) == "60/minute"
        os.close(fd)
        one.ready()
        assert rate(where) == "30/minute"


def test_a_start_waits_for_another_writer_and_may_be_stopped_meanwhile(
    where: Path, tmp_path: Path
) -> None:
    (where / "ntpguard").mkdir(mode=0o700, exist_ok=True)
    fd = os.open(where / "ntpguard", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        (tmp_path / "ntpguard.toml").write_text(POLICY)
        one = Daemon(tmp_path)
        one.logs("waiting: ")
        one.stop()
        assert guarded() == []
        with_lock = Daemon(tmp_path)
        with_lock.logs("waiting: ")
    finally:
        os.close(fd)
    assert with_lock.ready() == f"guards {NAMES[0]}"
    with_lock.stop()


def test_metrics_are_served_and_a_port_in_use_is_a_warning(where: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--listen", "127.0.0.1:9721"):
        with urllib.request.urlopen("http://127.0.0.1:9721/metrics", timeout=60) as answer:
            text = answer.read().decode()
        assert f'ntpguard_attached{{interface="{NAMES[0]}",xdp="native"}} 1.0' in text
    with (
        socket.create_server(("127.0.0.1", 9721)),
        running(tmp_path, "--listen", "127.0.0.1:9721") as one,
    ):
        assert re.search(
            r"warning: no metrics: 127.0.0.1:9721: cannot listen: Address already in use", one.log()
        )
        assert status() == (0, [])


@pytest.mark.parametrize("listen", ["none", "127.0.0.1:9721"])
def test_it_keeps_the_capabilities_that_it_needs(where: Path, tmp_path: Path, listen: str) -> None:
    mask = f"{sum(1 << number for number in NEEDED.values()):016x}"
    ip("link", "set", "lo", "up")
    with running(tmp_path, "--listen", listen) as one:
        for task in Path(f"/proc/{one.process.pid}/task").iterdir():
            text = (task / "status").read_text()
            sets = dict(re.findall(r"^(Cap\w+):\t(\w+)$", text, re.M))
            assert sets == {
                "CapInh": f"{0:016x}",
                "CapPrm": mask,
                "CapEff": mask,
                "CapBnd": mask,
                "CapAmb": f"{0:016x}",
            }
            assert "NoNewPrivs:\t1" in text
        assert "capabilities: CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF" in one.log()
        one.reload(BOTH)  # they are enough to load, attach and swap
        wait_for(lambda: guarded() == list(NAMES), one.log())


def test_a_bad_file_at_the_start_means_the_last_good_one(where: Path, tmp_path: Path) -> None:
    with running(tmp_path, policy=POLICY + SLOWER):
        pass
    lifecycle.down(None, bpffs=where)  # as after a reboot
    with running(tmp_path, policy="mod = 1\n") as one:
        assert (guarded(), rate(where)) == ([NAMES[0]], "30/minute")
        assert re.search(r"error: .*toml:1: mod: unknown setting", one.log())
        assert f"bad: the last good policy runs ({tmp_path}/state/{lastgood.NAME})" in one.log()
        code, (problem,) = status()
        assert (code, "the policy file is refused" in problem) == (1, True)
        # also if it has attached later
        ip("link", "del", NAMES[0])
        recreate(NAMES[0])
        one.logs(f"{NAMES[0]}: guarded", 2)
        assert status()[0] == 1
    assert status()[0] == 1
    with running(tmp_path, policy=POLICY + SLOWER):
        assert status() == (0, [])


def test_a_wrong_call_ends_with_2_before_anything(where: Path, tmp_path: Path) -> None:
    (tmp_path / "ntpguard.toml").write_text(POLICY)
    one = Daemon(tmp_path, "--listen", "9721")
    assert one.process.wait(60) == 2
    assert "--listen: must be HOST:PORT" in one.log()
    assert guarded() == []
    one.kill()


def test_a_file_that_names_no_interface_guards_none_until_it_does(
    where: Path, tmp_path: Path
) -> None:
    with running(tmp_path, policy="") as one:
        one.logs("ready: guards nothing; no interface named: set interfaces in")
        assert (guarded(), not_running()) == ([], True)
        one.reload(f'interfaces = ["{NAMES[0]}"]\n')
        assert one.ready() == f"guards {NAMES[0]}"
        assert (guarded(), data("status")["mode"]) == ([NAMES[0]], "observe")
        one.reload("")  # what is guarded stays so: ntpguard down ends it
        assert one.ready() == f"guards {NAMES[0]}"
        told("down")
        one.told_status("no interface named")


@pytest.mark.parametrize("copy", [None, "[limit\n"])
def test_a_bad_file_without_a_last_good_one_ends_with_3_before_anything(
    where: Path, tmp_path: Path, copy: str | None
) -> None:
    (tmp_path / "ntpguard.toml").write_text("mod = 1\nports = []\n")
    if copy:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / lastgood.NAME).write_text(copy)
    one = Daemon(tmp_path)
    assert one.process.wait(60) == 3
    assert re.search(r"toml:1: mod.*\n.*toml:2: ports.*\n.*last-good.toml", one.log())
    assert (guarded(), (where / "ntpguard").exists() and list((where / "ntpguard").iterdir())) in (
        ([], []),
        ([], False),
    )
    one.kill()


def test_a_state_directory_that_is_full_is_a_warning(where: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path / "state")], check=True
    )
    try:
        (tmp_path / "state/other").write_bytes(bytes(4096))
        with running(tmp_path) as one:
            one.logs("cannot keep the last good policy: No space left on device")
            assert (guarded(), status()) == ([NAMES[0]], (0, []))
        assert [path.name for path in (tmp_path / "state").iterdir()] == ["other"]
    finally:
        subprocess.run(["umount", str(tmp_path / "state")], check=True)


def test_what_is_killed_is_taken_over(where: Path, tmp_path: Path) -> None:
    with running(tmp_path) as one:
        before = links(where)
        one.process.send_signal(signal.SIGKILL)
        one.process.wait()
        assert guarded() == [NAMES[0]]
    with running(tmp_path):
        assert (links(where), status()) == (before, (0, []))


def test_it_makes_no_system_call_that_the_unit_forbids(where: Path, tmp_path: Path) -> None:
    unit = (Path(__file__).parents[2] / "deploy/systemd/ntpguard.service").read_text()
    (words,) = re.findall(r"^SystemCallFilter=(.*)$", unit, re.M)
    allowed: set[str] = set()
    for word in words.split():
        allowed |= calls(word) if word.startswith("@") else {word}
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-qqq", "-o", str(trace), "-e", "signal=none", NTPGUARD)
    with running(tmp_path, "--listen", "127.0.0.1:9721", command=strace) as one:
        (child,) = re.findall(
            r"\d+", Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text()
        )
        one.file.write_text(BOTH)
        os.kill(int(child), signal.SIGHUP)
        one.ready()
        urllib.request.urlopen("http://127.0.0.1:9721/metrics", timeout=60).close()
        os.kill(int(child), signal.SIGTERM)
        assert one.process.wait(60) == 0
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.M))
    assert {"bpf", "capset", "fsync", "flock"} <= made
    assert made - allowed == set()


def calls(group: str) -> set[str]:
    """The system calls of one of systemd's groups."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    found: set[str] = set()
    for word in re.findall(r"^    (@?[\w-]+)", done.stdout, re.M):
        if word != group:
            found |= calls(word) if word.startswith("@") else {word}
    return found
