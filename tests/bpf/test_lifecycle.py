"""up and down, called as functions: what they leave when they succeed, fail or are refused."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntpguard import abi, lifecycle, reading, running
from ntpguard.document import effective_policy, new_document
from ntpguard.errors import NotRunning, NtpguardError, UsageError
from ntpguard.kernel import binding, bpffs, interfaces, libbpf, maps
from ntpguard.policy.check import parse_policy
from ntpguard.policy.model import Policy
from tests.bpf.clang import compile_bpf

pytestmark = pytest.mark.skipif(
    "NTPGUARD_PRIVATE" not in os.environ, reason="attaches programs: runs in tests/private"
)
POLICY = parse_policy('mode = "enforce"\n[sources]\ncapacity = 4096\n')
LARGER = dataclasses.replace(POLICY, capacity=8192)
PEER = "lifecycle-peer"
NAMES = ("guard0", "guard1")
BRIDGE = "guard-bridge"

ACT = """import sys
from ntpguard import lifecycle
from ntpguard.kernel import bpffs
from ntpguard.policy.check import parse_policy
policy = parse_policy('mode = "enforce"\\n[sources]\\ncapacity = 4096\\n')
at = bpffs.directory(None)
if sys.argv[1] == "down":
    lifecycle.down(None, bpffs=at)
else:
    lifecycle.up([sys.argv[2]], policy, xdp="auto", bpffs=at, policy_file=None, warn=lambda t: None)
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def where() -> Iterator[Path]:
    """Two interfaces whose peers are in another namespace, and a bpffs without pins."""
    ip("netns", "add", PEER)
    try:
        for name in NAMES:
            ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", PEER)
            ip("link", "set", name, "up")
        at = bpffs.directory(None)
        yield at
        with contextlib.suppress(NotRunning):
            lifecycle.down(None, bpffs=at)
    finally:
        for name in (*NAMES, BRIDGE):
            subprocess.run(["ip", "link", "del", name], capture_output=True)
        ip("netns", "del", PEER)


def up(
    where: Path, *names: str, policy: Policy = POLICY, xdp: str = "auto"
) -> list[lifecycle.Attached]:
    return lifecycle.up(
        names or NAMES[:1],
        policy,
        xdp=xdp,
        bpffs=where,
        policy_file=None,
        warn=lambda text: None,
    )


def guarded() -> list[str]:
    return [one.name for one in interfaces.interfaces() if one.program_id]


def left(where: Path) -> list[Path]:
    """What is pinned."""
    return list((where / "ntpguard").iterdir())


def load_time(where: Path, name: str) -> abi.Constants:
    """What the program attached to an interface was loaded with."""
    own = bpffs.interface_pins(bpffs.pins(where), interfaces.interface(name).ifindex)
    return abi.Constants.from_buffer_copy(maps.constants(own)[: abi.size(abi.Constants)])


def running_policy(where: Path) -> Policy:
    with maps.opened(bpffs.pins(where)) as descriptors:
        return effective_policy(running.read_document(descriptors))


def compile_object(tmp_path: Path, source: str) -> Path:
    """A BPF object of the test's own."""
    file = tmp_path / "own.bpf.c"
    file.write_text("#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n" + source)
    return compile_bpf(file, file.with_suffix(".o"))


def test_up_attaches_and_down_leaves_nothing(where: Path) -> None:
    assert up(where, *NAMES) == [
        lifecycle.Attached(name, xdp="native", swapped=False) for name in NAMES
    ]
    assert guarded() == list(NAMES)
    assert lifecycle.down(None, bpffs=where) == list(NAMES)
    assert (guarded(), left(where)) == ([], [])
    with pytest.raises(NotRunning):
        lifecycle.down(None, bpffs=where)


def test_skb_mode_is_what_was_asked_for(where: Path) -> None:
    assert up(where, xdp="skb")[0].xdp == "skb"


def test_a_second_up_swaps_the_program_and_keeps_maps_link_and_counters(where: Path) -> None:
    def identities() -> dict[str, int]:
        at = bpffs.pins(where)
        own = next(iter(bpffs.attached(at).values()))
        with maps.opened(at) as descriptors:
            found = {name: libbpf.map_info(fd).id for name, fd in descriptors.items()}
        with maps.descriptor(own / "counters") as fd:
            found["counters"] = libbpf.map_info(fd).id
        with maps.descriptor(own / "link") as fd:
            found["link"] = libbpf.link_info(fd).id
        return found

    up(where)
    before, program = identities(), interfaces.interface(NAMES[0]).program_id
    assert up(where)[0].swapped
    assert identities() == before
    after = interfaces.interface(NAMES[0]).program_id
    assert after is not None and after != program
    own = next(iter(bpffs.attached(bpffs.pins(where)).values()))
    with maps.descriptor(own / "program") as fd:
        assert libbpf.prog_info(fd).id == after


def test_the_policy_runs_before_the_first_link(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    create = libbpf.link_create

    def spy(program: int, ifindex: int, flags: int) -> int:
        with maps.opened(bpffs.pins(where)) as descriptors:
            seen.append(running.read_root(descriptors))
        return create(program, ifindex, flags)

    monkeypatch.setattr(libbpf, "link_create", spy)
    up(where)
    assert [abi.field(root, abi.ROOT_MODE_SHIFT, abi.ROOT_MODE_BITS) for root in seen] == [2]


def test_down_of_one_interface_named_twice_leaves_the_other_guarded(where: Path) -> None:
    up(where, *NAMES)
    assert lifecycle.down([NAMES[0], NAMES[0]], bpffs=where) == [NAMES[0]]
    assert guarded() == [NAMES[1]]


def test_an_interface_that_cannot_be_attached_leaves_nothing_new(where: Path) -> None:
    ip("link", "add", BRIDGE, "type", "bridge")  # bridges have no native XDP
    refused = f"^{BRIDGE}: .*[A-Z]+: the driver has no native XDP: try --xdp skb$"
    with pytest.raises(NtpguardError, match=refused):
        up(where, NAMES[0], BRIDGE, xdp="native")
    assert (guarded(), left(where)) == ([], [])
    up(where, NAMES[0])
    with pytest.raises(NtpguardError, match=refused):
        up(where, *NAMES, BRIDGE, xdp="native")
    assert guarded() == [NAMES[0]]
    assert len(list(bpffs.pins(where).glob("if*"))) == 1


def test_what_an_interrupted_up_left_does_not_bind_the_next_one(where: Path) -> None:
    up(where)
    for one in bpffs.attached(bpffs.pins(where)).values():
        (one / "link").unlink()
    up(where, policy=LARGER)
    assert guarded() == [NAMES[0]]


def test_a_running_table_is_not_replaced(where: Path) -> None:
    up(where)
    with pytest.raises(NtpguardError, match="run ntpguard down first"):
        up(where, policy=LARGER)
    assert guarded() == [NAMES[0]]


def test_an_interface_that_went_away_is_forgotten(where: Path) -> None:
    up(where, *NAMES)
    ip("link", "del", NAMES[1])
    up(where)
    assert len(list(bpffs.pins(where).glob("if*"))) == 1


def test_a_policy_that_cannot_be_applied_says_why_and_changes_nothing(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(where)

    def no_memory(*arguments: object, **options: object) -> int:
        raise binding.BpfError("map prefixes_ipv4: ENOMEM", 12)

    with maps.opened(bpffs.pins(where)) as descriptors:
        before = running.read_root(descriptors)
        monkeypatch.setattr(libbpf, "map_create", no_memory)
        with pytest.raises(binding.BpfError, match="ENOMEM"):
            running.write(descriptors, POLICY, new_document(POLICY, None))
        assert running.read_root(descriptors) == before


def test_another_program_is_named_and_left_alone(where: Path, tmp_path: Path) -> None:
    own = compile_object(tmp_path, 'SEC("xdp") int other(void *c) { return XDP_PASS; }')
    ip("link", "set", "dev", NAMES[0], "xdp", "obj", str(own), "sec", "xdp")
    program = interfaces.interface(NAMES[0]).program_id
    with pytest.raises(NtpguardError, match=f'another XDP program.*"other", id {program}'):
        up(where)
    assert interfaces.interface(NAMES[0]).program_id == program


def test_an_unknown_interface_is_answered_with_those_that_exist(where: Path) -> None:
    with pytest.raises(UsageError, match=r"guard9: no such interface: there are .*guard0"):
        up(where, "guard9")


def test_a_rejected_program_shows_the_end_of_a_long_verifier_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = "x += bpf_get_prandom_u32();\n" * 4096
    own = compile_object(
        tmp_path,
        'SEC("xdp") int ntpguard(struct xdp_md *c) { volatile unsigned long x = 0;\n'
        f"{long}return *(int *)(long)c->data + x; }}\n"
        'char _license[] SEC("license") = "GPL";\n',
    )
    with (
        libbpf.Object(own) as rejected,
        pytest.raises(binding.BpfError, match=r"invalid access to packet|to pkt at offset"),
    ):
        binding.library().libbpf_set_print(None)  # as bcc does, in the same process
        rejected.load()
    assert capfd.readouterr().err == ""


def test_a_live_change_is_refused_when_the_interface_went_away(where: Path) -> None:
    up(where)
    ip("link", "del", NAMES[0])
    with pytest.raises(NotRunning), running.writing(where):
        pass


def test_a_second_up_of_one_interface_gives_every_interface_the_new_ports(where: Path) -> None:
    up(where, *NAMES)
    attached = up(where, NAMES[0], policy=dataclasses.replace(POLICY, ports=(123, 1123)))
    assert [(one.name, one.swapped) for one in attached] == [(name, True) for name in NAMES]
    for name in NAMES:
        ports = [socket.ntohs(port) for port in load_time(where, name).ports]
        assert set(ports) == {123, 1123}, name


def test_maps_of_a_version_with_fewer_are_not_replaced_while_links_are_live(where: Path) -> None:
    def sources() -> int:
        with maps.descriptor(bpffs.pins(where) / "sources") as fd:
            return libbpf.map_info(fd).id

    up(where)
    before = sources()
    (bpffs.pins(where) / "offenders").unlink()
    with pytest.raises(NtpguardError, match=r"no offenders in it: another version.*ntpguard down"):
        up(where)
    assert (guarded(), sources()) == ([NAMES[0]], before)


def test_pins_of_a_network_namespace_that_is_gone_are_removed_and_those_of_a_live_one_stay(
    where: Path,
) -> None:
    def guard_other(namespace: str) -> Path:
        before = set(left(where))
        ip("netns", "add", namespace)
        inside = ["nsenter", f"--net=/run/netns/{namespace}"]
        ip("-n", namespace, "link", "add", "guard0", "type", "veth", "peer", "name", "peer0")
        subprocess.run([*inside, sys.executable, "-c", ACT, "up", "guard0"], check=True)
        (made,) = set(left(where)) - before
        return made

    def delete(namespace: str, own: Path) -> None:
        ip("netns", "del", namespace)
        for _ in range(200):  # the kernel takes a namespace down in its own time
            if not maps.live_links(own):
                break
            time.sleep(0.05)

    (where / "ntpguard").mkdir(mode=0o700, exist_ok=True)
    rubbish = where / "ntpguard" / "netns-1-new"
    rubbish.mkdir()
    live, gone = guard_other("live"), guard_other("gone")
    try:
        delete("gone", gone)
        up(where)
        assert sorted(left(where)) == sorted([live, bpffs.pins(where)])
        assert maps.live_links(live)
        assert lifecycle.down(None, bpffs=where) == [NAMES[0]]
        assert left(where) == [live]
    finally:
        delete("live", live)
        up(where)
    assert left(where) == [bpffs.pins(where)]


def test_an_up_that_fails_leaves_policy_and_programs_as_they_were(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = parse_policy(
        'mode = "observe"\nports = [1123]\n[sources]\ncapacity = 4096\n'
        '[[class]]\nname = "all"\nprefixes = ["0.0.0.0/0"]\naction = "block"\n'
    )
    up(where, *NAMES)
    programs = [interfaces.interface(name).program_id for name in NAMES]
    swap, swapped = libbpf.link_update, []

    def fail_once(link: int, program: int) -> None:
        swapped.append(link)
        if len(swapped) == 2:
            raise binding.BpfError("swapping the XDP program: ENOMEM", 12)
        swap(link, program)

    def same() -> None:
        assert [interfaces.interface(name).program_id for name in NAMES] == programs
        assert running_policy(where) == POLICY
        for own, program in zip(bpffs.attached(bpffs.pins(where)).values(), programs, strict=True):
            with maps.descriptor(own / "program") as fd:
                assert libbpf.prog_info(fd).id == program

    ip("link", "add", BRIDGE, "type", "bridge")  # bridges have no native XDP
    with pytest.raises(NtpguardError, match=BRIDGE):
        up(where, NAMES[0], BRIDGE, policy=other, xdp="native")
    same()
    monkeypatch.setattr(libbpf, "link_update", fail_once)
    with pytest.raises(NtpguardError, match="ENOMEM"):
        up(where, policy=other)
    assert len(swapped) > 2
    same()


def test_another_xdp_mode_for_an_attached_interface_is_not_silently_ignored(where: Path) -> None:
    said: list[str] = []
    up(where)
    lifecycle.up(NAMES[:1], POLICY, xdp="skb", bpffs=where, policy_file=None, warn=said.append)
    assert said == [
        f"{NAMES[0]}: stays attached in mode native: for skb, run ntpguard down {NAMES[0]} first"
    ]


def test_a_host_that_forwards_is_warned_unless_the_policy_names_its_addresses(
    where: Path,
) -> None:
    named = parse_policy('destinations = ["198.51.100.1"]\n[sources]\ncapacity = 4096\n')
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    switch.write_text("1")
    try:
        for policy, warned in ((POLICY, 1), (named, 0)):
            said: list[str] = []
            lifecycle.up(
                NAMES[:1], policy, xdp="auto", bpffs=where, policy_file=None, warn=said.append
            )
            assert sum("this host forwards IPv4: " in text for text in said) == warned
    finally:
        switch.write_text("0")


def test_a_read_only_bpffs_is_told_in_words(where: Path) -> None:
    up(where)
    subprocess.run(["mount", "-o", "remount,bind,ro", where], check=True)
    try:
        with pytest.raises(
            NtpguardError, match=r"link: cannot be used: Read-only file system: see"
        ):
            lifecycle.down(None, bpffs=where)
        with pytest.raises(NtpguardError, match=r"Read-only file system"):
            up(where, *NAMES)
    finally:
        subprocess.run(["mount", "-o", "remount,bind,rw", where], check=True)
    assert guarded() == [NAMES[0]]


def test_a_bpffs_may_be_mounted_where_a_name_has_a_blank(tmp_path: Path) -> None:
    at = tmp_path / "a blank"
    at.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", at], check=True)
    try:
        bpffs.require(at)
    finally:
        subprocess.run(["umount", at], check=True)


def test_a_document_that_is_replaced_while_it_is_read_is_read_again(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(where)
    lookup = libbpf.map_lookup
    with maps.opened(bpffs.pins(where)) as descriptors:

        def late(fd: int, key: bytes, value_size: int) -> bytes | None:
            if fd == descriptors["document"] and value_size == abi.size(abi.Document):
                monkeypatch.undo()
                document = running.read_document(descriptors)
                running.write_document(descriptors, {**document, "refused": "late"})
            return lookup(fd, key, value_size)

        monkeypatch.setattr(libbpf, "map_lookup", late)
        assert running.read_document(descriptors)["refused"] == "late"


def test_a_reader_that_meets_a_down_is_told_that_nothing_runs(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(where)
    look = maps.live_links

    def then_down(at: Path) -> dict[int, Path]:
        found = look(at)
        monkeypatch.undo()
        lifecycle.down(None, bpffs=where)
        return found

    monkeypatch.setattr(maps, "live_links", then_down)
    with pytest.raises(NotRunning), reading.open_running(where):
        pass
