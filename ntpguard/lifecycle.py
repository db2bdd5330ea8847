"""up, down: the life of the guard on one host.

State outlives the process; a lock serialises writers. Every step may be the last one (a kill, a
power cut): a set of maps is made in a staging directory and renamed when it is whole; a link is
pinned last. So whatever is found has one of three meanings: a link pinned is enforcement;
maps without a link are an interruption's remains, used again or removed; a staging directory is
rubbish.
"""

import ctypes
import errno
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ntpguard import abi, program, running, temporary, tries
from ntpguard.errors import NotRunning, NtpguardError, UsageError
from ntpguard.keeping import Keep, kept
from ntpguard.kernel import binding, driver, interfaces, libbpf, maps
from ntpguard.kernel import bpffs as pinned
from ntpguard.moments import Moment
from ntpguard.policy.compile import Compiled, TableShape, compile_policy, too_large
from ntpguard.policy.model import Policy
from ntpguard.temporary import MODE

DETACHING_SECONDS = 2.0  # the kernel detaches an unpinned link a moment after its last descriptor


@dataclass(frozen=True)
class Attached:
    """One guarded interface; `swapped`: it was guarded before, by an older program."""

    name: str
    xdp: str
    swapped: bool


def up(
    names: Sequence[str],
    policy: Policy,
    *,
    xdp: str,
    bpffs: Path,
    policy_file: str | None,
    warn: Callable[[str], None],
    revert_after: float | None = None,
    keep: Keep = Keep.NOTHING,
    wait: bool = True,
) -> list[Attached]:
    """Loads, attaches and pins; enforcement stays when the process ends.

    `revert_after`: seconds after which the packet path itself goes from enforce to observe, unless
    a change of mode comes first. `keep`: what of a guard that runs goes before `policy`. `wait`:
    for another writer; else Busy is raised.

    Every interface that is guarded already, named or not, gets the new program in one atomic swap:
    what is decided at load time (ports, MAC address) holds for all. Raises UsageError for
    interfaces, NtpguardError for what the kernel refuses; then nothing new is attached or pinned,
    and what was guarded before is guarded as before, by the same program and policy.
    """
    if not names:
        raise UsageError("no interface: name one, or set interfaces in the policy file")
    pinned.require(bpffs)
    chosen = [interfaces.interface(name) for name in dict.fromkeys(names)]
    with pinned.lock(bpffs, wait=wait), ExitStack() as held:
        at = pinned.pins(bpffs)
        _tidy(bpffs)
        policy, document = kept(at, policy, policy_file, keep)
        compiled = compile_policy(policy)
        before = pinned.attached(at)
        for one in chosen:
            _refuse_foreign(one, before.get(one.ifindex))
        _warn(chosen, set(before), xdp, warn)
        if not policy.destinations:
            _warn_of_forwarding(warn)
        others = before.keys() - {one.ifindex for one in chosen}
        everyone = chosen + interfaces.interfaces_of(others)
        undo = ExitStack()
        try:
            undo.callback(_remove_new, bpffs, set(before))
            if not _can_use_maps(at, compiled, running_now=bool(before)):
                _make_maps(bpffs, policy, compiled)
            descriptors = held.enter_context(maps.opened(at))
            table = running.read_table(descriptors["table"])
            # whatever may be refused comes before the first change that a packet can see
            programs = {
                one.ifindex: held.enter_context(
                    program.loaded(at, one, descriptors, table, compiled)
                )
                for one in everyone
            }
            if before:
                document_before = running.read_document(descriptors)
                policy_before = tries.whole_policy(descriptors, document_before)
                undo.callback(running.write, descriptors, policy_before, document_before)
            running.write_local_addresses(descriptors)
            if revert_after is not None and policy.mode == "enforce":
                temporary.change(document, MODE, "observe", None)
                temporary.change(document, MODE, policy.mode, Moment.after(revert_after))
            if keep != Keep.POLICY or document != running.find_document(descriptors):
                running.write(descriptors, policy, document)
            for one in everyone:
                if one.ifindex not in before:
                    own = pinned.interface_pins(at, one.ifindex)
                    program.attach(own, one, programs[one.ifindex], xdp)
            for one in everyone:
                if one.ifindex in before:
                    program.swap(before[one.ifindex], programs[one.ifindex], held, undo)
        except BaseException:
            with libbpf.uninterrupted():
                undo.close()
            raise
        return [
            Attached(one.name, interfaces.interface(one.name).xdp, one.ifindex in before)
            for one in everyone
        ]


def down(names: Sequence[str] | None, *, bpffs: Path, wait: bool = True) -> list[str]:
    """Detaches the named interfaces, or all; with the last one, everything is unpinned.

    Returns the names detached. Raises NotRunning if there is nothing to take down; Busy, unless it
    is to `wait` for another writer.
    """
    pinned.require(bpffs)
    # the few milliseconds between the first and the last interface are not interrupted
    with pinned.lock(bpffs, wait=wait), libbpf.uninterrupted():
        at = pinned.pins(bpffs)
        remains = _tidy(bpffs)
        before = pinned.attached(at)
        by_index = {one.ifindex: one.name for one in interfaces.interfaces()}
        if names:
            known = {by_index.get(index, f"if{index}"): index for index in before}
            unknown = [name for name in names if name not in known]
            if unknown:
                there = ", ".join(known) or "none"
                raise UsageError(f"{unknown[0]}: not guarded: guarded are {there}")
            chosen = [known[name] for name in dict.fromkeys(names)]
        else:
            chosen = list(before)
        for index in chosen:
            program.detach(before[index])
            pinned.remove(before[index])
        if len(chosen) == len(before):
            remains |= at.exists()
            pinned.remove(at)
        if not chosen and not remains:
            raise NotRunning(
                "not running: nothing is attached in this network namespace: try ntpguard up "
                "INTERFACE, or nsenter --net=/run/netns/NAME ntpguard down for another"
            )
        return [by_index.get(index, f"if{index}") for index in chosen]


def _tidy(bpffs: Path) -> bool:
    """Removes what an interruption left, and links without an interface; tells if there was any."""
    found = False
    staging = pinned.staging(bpffs)
    if staging.exists():
        pinned.remove(staging)
        found = True
    at = pinned.pins(bpffs)
    live = maps.live_links(at)
    for one in at.glob("if*"):
        if one not in live.values():
            pinned.remove(one)
            found = True
    # a network namespace that is gone has taken its interfaces along; and no other writer is in
    # the middle of making a set, for it would hold the lock
    for one in pinned.others(bpffs):
        if not maps.live_links(one):
            pinned.remove(one)
    return found


def _remove_new(bpffs: Path, before: set[int]) -> None:
    """Takes back what an up that failed has attached and pinned."""
    at = pinned.pins(bpffs)
    for index, own in pinned.attached(at).items():
        if index not in before:
            program.detach(own)
    _tidy(bpffs)
    if not before:
        pinned.remove(at)


def _refuse_foreign(one: interfaces.Interface, ours: Path | None) -> None:
    if ours is not None:
        return
    name = program.name_on(one)
    end = time.monotonic() + DETACHING_SECONDS
    while name == maps.PROGRAM and time.monotonic() < end:
        time.sleep(0.01)  # of a link that an interrupted up or down has let go
        one = interfaces.interface(one.name)
        name = program.name_on(one)
    if name is not None:
        raise NtpguardError(
            f'{one.name}: another XDP program is attached: "{name}", id {one.program_id}: '
            f"if it is not needed: ip link set dev {one.name} xdp off"
        )


def _warn(
    chosen: Sequence[interfaces.Interface],
    before: set[int],
    xdp: str,
    warn: Callable[[str], None],
) -> None:
    for one in chosen:
        if one.ifindex in before and xdp not in ("auto", one.xdp):
            warn(
                f"{one.name}: stays attached in mode {one.xdp}: for {xdp}, run "
                f"ntpguard down {one.name} first"
            )
        hardware = driver.name_of(one.name) != "veth"
        if hardware and one.ifindex not in before and xdp != "skb":
            warn(
                f"{one.name}: attaching in native mode can reset the NIC: a few seconds of no link"
            )
        if hardware and driver.vlan_stripping(one.name):
            warn(
                f"{one.name}: the NIC strips VLAN tags: a KoD on a tagged network would go out "
                f"untagged: ethtool -K {one.name} rxvlan off txvlan off"
            )


def _warn_of_forwarding(warn: Callable[[str], None]) -> None:
    families = interfaces.forwarding()
    if families:
        warn(
            f"this host forwards {' and '.join(families)}: NTP packets that it forwards are "
            "limited too: set destinations in the policy file to this host's addresses"
        )


def _make_maps(bpffs: Path, policy: Policy, compiled: Compiled) -> None:
    staging = pinned.staging(bpffs)
    shape = compiled.table
    with libbpf.Object(maps.object_path()) as made:
        made.set_max_entries("sources", shape.buckets)
        made.leave_out(maps.PROGRAM)
        try:
            program.load(made)
        except binding.BpfError as error:
            if error.errno != errno.ENOMEM:
                raise
            _, newline, log = str(error).partition("\n")
            words = too_large(policy, libbpf.possible_cpus())
            raise NtpguardError(f"{words}{newline}{log}") from None
        table = abi.Table(
            abi=abi.ABI,
            buckets=shape.buckets,
            seed=(ctypes.c_uint64 * 2)(secrets.randbits(64), secrets.randbits(64)),
            ipv4_prefix=shape.ipv4_prefix,
            ipv6_prefix=shape.ipv6_prefix,
        )
        libbpf.map_update(made.map_fd("table"), bytes(4), bytes(table))
        staging.mkdir(mode=0o700)
        for name in maps.SHARED_MAPS:
            libbpf.obj_pin(made.map_fd(name), staging / name)
    # what lies there is not whole, or an interruption's remains of another shape
    pinned.remove(pinned.pins(bpffs))
    staging.rename(pinned.pins(bpffs))


def _can_use_maps(at: Path, compiled: Compiled, *, running_now: bool) -> bool:
    """Whether the pinned maps are whole and of the policy's shape.

    Raises NtpguardError if they are not and `running_now`: they hold its sources.
    """
    if not at.exists():
        return False
    try:
        with maps.opened(at) as descriptors:
            table = running.read_table(descriptors["table"])
    except maps.Unusable:
        if running_now:
            raise
        return False
    difference = table_difference(table, compiled.table)
    if difference and running_now:
        raise NtpguardError(difference)
    return difference is None


def table_difference(table: abi.Table, shape: TableShape) -> str | None:
    """Why the running source table does not fit the policy, with the remedy; None: it does."""
    if table.abi != abi.ABI:
        return (
            f"the running table has ABI {table.abi}, this ntpguard {abi.ABI}: run ntpguard down "
            "first (sources are forgotten)"
        )
    wanted = (shape.buckets, shape.ipv4_prefix, shape.ipv6_prefix)
    if (table.buckets, table.ipv4_prefix, table.ipv6_prefix) != wanted:
        return (
            f"sources: the running table holds {table.buckets * 2} sources of "
            f"/{table.ipv4_prefix} and /{table.ipv6_prefix}, the policy wants {shape.buckets * 2} "
            f"of /{shape.ipv4_prefix} and /{shape.ipv6_prefix}: run ntpguard down first "
            "(sources are forgotten)"
        )
    return None
