"""What is wrong with the running guard, each in words that end with the remedy. Reads only."""

import time
from dataclasses import dataclass
from pathlib import Path

from ntpguard import abi
from ntpguard.errors import PermissionNeeded
from ntpguard.kernel import bpffs as pinned
from ntpguard.kernel import interfaces, maps
from ntpguard.reading import Running

WATCH_SECONDS = 0.05  # long enough to see a flood, short enough for status


@dataclass(frozen=True)
class Untracked:
    """How many requests had found no slot at a time (monotonic, seconds)."""

    seconds: float
    gated: int
    full: int
    lost: int


def untracked(guard: Running) -> Untracked:
    """The requests without a slot so far: a first look, to be compared with a later one."""
    table = guard.table_counters()
    return Untracked(time.monotonic(), table["gated"], table["full"], table["lost"])


def problems(guard: Running, bpffs: Path, first: Untracked) -> list[str]:
    """Everything that is wrong, now and since `first`; waits until that is WATCH_SECONDS ago."""
    return [*standing(guard, bpffs), *_growth(guard, first)]


def standing(guard: Running, bpffs: Path) -> list[str]:
    """Everything that is seen to be wrong at one look."""
    return [*_file(guard), *_interfaces(guard, pinned.pins(bpffs)), *_table(guard)]


def _file(guard: Running) -> list[str]:
    """What the daemon has noted: a policy file that it could not apply."""
    document = guard.document()
    refused = document.get("refused")
    if not refused:
        return []
    return [
        f"the policy file is refused, the one applied {document['applied']} runs: {refused}: "
        f"correct it, then systemctl reload ntpguard or ntpguard up --policy {document['file']}"
    ]


def _interfaces(guard: Running, at: Path) -> list[str]:
    live = maps.live_links(at)
    there = interfaces.interfaces()
    found = [
        f"interface {ifindex}: guarded once, but gone: if it is back under another number, run "
        "ntpguard up on it"
        for ifindex in pinned.attached(at)
        if ifindex not in live
    ]
    guarded = [one for one in there if one.ifindex in live]
    if not guarded:
        found.append("no guarded interface exists any more: run ntpguard up again")
    names, guarded_names = {one.name for one in there}, {one.name for one in guarded}
    for name in guard.policy().interfaces:
        if name not in names:
            found.append(
                f"{name}: no such interface, but the policy names it: a daemon that runs waits for "
                "it; otherwise correct interfaces in the policy"
            )
        elif name not in guarded_names:
            found.append(f"{name}: not guarded, but the policy names it: run ntpguard up {name}")
    for one in guarded:
        loaded = _loaded_mac(live[one.ifindex])
        if loaded is not None and loaded != one.mac:
            found.append(
                f"{one.name}: its MAC address is now {one.mac.hex(':')}, the program was loaded "
                f"for {loaded.hex(':')} and passes every packet: run ntpguard up {one.name}"
            )
    return found


def _loaded_mac(own: Path) -> bytes | None:
    """The address that the running program compares with; None if it cannot be told."""
    try:
        raw = maps.constants(own)
    except PermissionNeeded:
        return None
    return bytes(abi.Constants.from_buffer_copy(raw[: abi.size(abi.Constants)]).mac)


def _table(guard: Running) -> list[str]:
    held = sum(guard.sources_held().values())
    if held <= guard.capacity:
        return []
    return [
        f"the source table is more than half full ({held} sources, made for {guard.capacity}): "
        "raise sources.capacity"
    ]


def _growth(guard: Running, first: Untracked) -> list[str]:
    time.sleep(max(0.0, first.seconds + WATCH_SECONDS - time.monotonic()))
    now = untracked(guard)
    gated = now.gated - first.gated
    full, lost = now.full - first.full, now.lost - first.lost
    if not gated + full + lost:
        return []
    milliseconds = (now.seconds - first.seconds) * 1000
    return [
        f"requests go untracked: in {milliseconds:.0f} ms, {gated} were of more new sources than "
        f"the table takes at a time, {full} found no room in it and {lost} lost a race for it: an "
        f"attack with forged addresses, or raise sources.capacity (now {guard.capacity})"
    ]
