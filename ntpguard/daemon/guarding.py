"""What the daemon does to the guard. It waits for nobody: after Busy it is tried again."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from ntpguard import entries, lifecycle, running
from ntpguard.daemon import lastgood, links
from ntpguard.errors import Busy, NotRunning, NtpguardError, PolicyError
from ntpguard.keeping import Keep
from ntpguard.kernel import bpffs as pinned
from ntpguard.kernel import interfaces, libbpf, maps
from ntpguard.policy.check import read_policy
from ntpguard.policy.kinds import Address
from ntpguard.policy.model import Policy
from ntpguard.words import Family

RETRY_SECONDS = 30.0
AGAIN = "systemctl reload ntpguard, or ntpguard up, guards it again"


@dataclasses.dataclass(frozen=True)
class Log:
    """Where lines for people go, by how much they matter."""

    info: Callable[[str], None]
    warn: Callable[[str], None]
    error: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _Failure:
    """An interface as it was when attaching to it failed, when, and why."""

    interface: interfaces.Interface
    seconds: float
    text: str


class Guarding:
    """The guard as the daemon's policy file wants it, and what was seen of it last.

    `trouble` is what is wrong with the guard itself, None if it is healthy. `refused` is why the
    file is not what runs.
    """

    def __init__(self, file: Path, bpffs: Path, log: Log) -> None:
        """Reads the policy. Raises PolicyError if file and last good copy are bad."""
        self.file = file
        self.trouble: str | None = None
        self.refused: str | None = None
        self._bpffs = bpffs
        self._at = pinned.pins(bpffs)
        self._log = log
        self._links: dict[int, interfaces.Interface] = {}
        self._guarded: dict[int, bytes] = {}  # interface -> the MAC address it was attached for
        self._released: set[int] = set()  # taken down by somebody else, and left so
        self._failed: dict[int, _Failure] = {}
        self._addresses: set[Address] = set()
        self._taken_down = False
        self._unmounted = False
        self._unmarked = False
        self.policy = self._first()

    def _first(self) -> Policy:
        try:
            policy = read_policy(self.file)
        except PolicyError as bad:
            try:
                last = lastgood.read()
            except PolicyError as damaged:
                raise PolicyError(bad.errors + damaged.errors) from None
            if last is None:
                none = f"{lastgood.path()}: no last good policy to go on with"
                raise PolicyError([*bad.errors, none]) from None
            for line in bad.errors:
                self._log.error(line)
            self._log.warn(f"{self.file}: bad: the last good policy runs ({lastgood.path()})")
            self.refused = _shortly(bad.errors)
            return last
        for line in policy.warnings:
            self._log.warn(line)
        return policy

    def start(self) -> None:
        """Attaches, or takes over what is attached: live changes stay if the policy is the same.

        Raises NtpguardError, having changed nothing.
        """
        self._apply(self.policy, Keep.LIVE)
        self._mark()
        if self.refused is None:
            self._save()

    def reload(self) -> None:
        """Reads the policy file again: a good one is applied, a bad one changes nothing."""
        try:
            policy = read_policy(self.file)
            self._apply(policy, Keep.NOTHING)
        except Busy:
            raise
        except NtpguardError as error:
            lines = str(error).splitlines()
            for line in lines:
                self._log.error(line)
            self._log.warn(f"{self.file}: refused: the policy stays as it is")
            self.refused = _shortly(lines)
            self._mark()
            return
        for line in policy.warnings:
            self._log.warn(line)
        self.policy, self.refused = policy, None
        self._mark()
        self._save()
        self._log.info(f"{self.file}: applied")

    def look(self) -> None:
        """Follows what has changed since the last look. Raises Busy."""
        try:
            self._require_bpffs()
            if self._unmounted:
                self._log.info(f"{self._bpffs}: a bpffs is mounted there again")
                self._apply(self.policy, Keep.LIVE)
                self._unmounted = False
            self._follow()
            if self._unmarked:
                self._note()
        except Busy:
            raise
        except NtpguardError as error:
            self._in_trouble(str(error))
        else:
            self.trouble = None

    def clean(self) -> None:
        """Removes live entries that have expired. Raises Busy; what else is wrong, look() tells."""
        try:
            with running.writing(self._bpffs, wait=False) as descriptors, libbpf.uninterrupted():
                removed = sum(entries.clean_expired(descriptors, family) for family in Family)
        except Busy:
            raise
        except NtpguardError:
            return
        if removed:
            self._log.info(f"live entries: {removed} expired and removed")

    def stop(self) -> None:
        """What the policy says of an end: nothing, or all is detached. Raises Busy."""
        names = self._names() or "nothing"
        if self.policy.on_exit == "keep":
            self._log.info(f'stopped: {names} stays guarded (on_exit = "keep")')
            return
        try:
            lifecycle.down(None, bpffs=self._bpffs, wait=False)
        except NotRunning:
            names = "nothing"
        self._log.info(f'stopped: {names} detached (on_exit = "detach")')

    def summary(self) -> str:
        """How things stand, in one line."""
        there = {one.name for one in self._links.values()}
        waiting = [name for name in self.policy.interfaces if name not in there]
        parts = [f"guards {self._names() or 'nothing'}"]
        if waiting:
            parts.append(f"waits for {', '.join(waiting)}")
        if not self.policy.interfaces and not self._guarded:
            parts.append(f"no interface named: set interfaces in {self.file}, and reload")
        if self._taken_down:
            parts.append(f"taken down: {AGAIN}")
        parts += [f"not guarded: {one.text}" for one in self._failed.values()]
        if self.refused:
            parts.append(f"degraded: policy file refused: {self.refused}")
        if self.trouble:
            parts.append(f"degraded: {self.trouble}")
        return "; ".join(parts)

    def _names(self) -> str:
        return ", ".join(
            one.name for ifindex, one in self._links.items() if ifindex in self._guarded
        )

    def _apply(self, policy: Policy, keep: Keep) -> None:
        """ntpguard up, for what exists of the policy's interfaces and what is guarded already."""
        found = {one.ifindex: one for one in interfaces.interfaces()}
        live = maps.live_links(self._at)
        names = [one.name for one in found.values() if one.ifindex in live]
        names += [one.name for one in found.values() if one.name in policy.interfaces]
        if names:
            self._up(names, policy, keep, found)
        else:
            pinned.require(self._bpffs)
        self._links = self._links or found
        self._taken_down = False
        self._released.clear()
        for name in policy.interfaces:
            if name not in {one.name for one in found.values()}:
                self._log.warn(f"{name}: no such interface: waiting until it is there")

    def _up(self, names: list[str], policy: Policy, keep: Keep, seen: links.Links) -> None:
        attached = lifecycle.up(
            names,
            policy,
            xdp=policy.xdp,
            bpffs=self._bpffs,
            policy_file=str(self.file.resolve()),
            warn=self._log.warn,
            keep=keep,
            wait=False,
        )
        now = {one.name: one for one in interfaces.interfaces()}
        for done in attached:
            one = now.get(done.name)
            if one is None:
                continue  # it went at once: the next look tells
            if one.ifindex not in self._guarded:
                verb = "taken over" if done.swapped else "guarded"
                self._log.info(f"{one.name}: {verb}, xdp {done.xdp}")
            self._guarded[one.ifindex] = seen.get(one.ifindex, one).mac
        self._addresses = interfaces.local_addresses()
        self._unmarked = True

    def _require_bpffs(self) -> None:
        try:
            pinned.require(self._bpffs)
        except NtpguardError:
            self._unmounted = True
            self._guarded.clear()  # a link is detached with its last pin
            raise

    def _follow(self) -> None:
        now = {one.ifindex: one for one in interfaces.interfaces()}
        before, self._links = self._links, now
        for line in links.changes(before, now, self.policy.interfaces, self._guarded):
            self._log.info(line)
        live = maps.live_links(self._at)
        if live:
            maps.require_whole(self._at)
        self._released &= now.keys()
        self._failed = {index: one for index, one in self._failed.items() if index in now}
        self._compare(now, set(live))
        self._attach(now)
        addresses = interfaces.local_addresses()
        if addresses != self._addresses and self._guarded:
            with running.writing(self._bpffs, wait=False) as descriptors:
                running.write_local_addresses(descriptors)
            self._log.info(links.address_change(self._addresses, addresses))
            self._addresses = addresses

    def _compare(self, now: links.Links, live: set[int]) -> None:
        """Learns what others have attached and taken down."""
        for ifindex in live - self._guarded.keys():
            if ifindex in now:
                self._log.info(f"{now[ifindex].name}: guarded by another command")
                self._guarded[ifindex] = now[ifindex].mac
                self._released.discard(ifindex)
                self._failed.pop(ifindex, None)
        lost = self._guarded.keys() - live
        for ifindex in lost & now.keys():
            self._log.warn(
                f"{now[ifindex].name}: guarded no more: ntpguard down, or its pins were removed: "
                f"{AGAIN}"
            )
            self._released.add(ifindex)
        for ifindex in lost:
            del self._guarded[ifindex]
        if live:
            self._taken_down = False
        elif self._released and not self._at.exists():
            self._taken_down = True

    def _attach(self, now: links.Links) -> None:
        """Attaches to what has come, and anew where the MAC address has changed."""
        if self._taken_down:
            return
        for ifindex, one in now.items():
            moved = one.mac != self._guarded.get(ifindex, one.mac)
            new = one.name in self.policy.interfaces and ifindex not in self._guarded
            if not (moved or (new and ifindex not in self._released)):
                continue
            failed = self._failed.get(ifindex)
            soon = failed and time.monotonic() < failed.seconds + RETRY_SECONDS
            if failed and soon and failed.interface == one:
                continue
            try:
                self._up([one.name], self.policy, Keep.POLICY, now)
                self._failed.pop(ifindex, None)
                if moved:
                    self._log.info(f"{one.name}: guarded for its new MAC address")
            except Busy:
                raise
            except NtpguardError as error:
                self._failed[ifindex] = _Failure(one, time.monotonic(), str(error))
                if failed is None or failed.text != str(error):
                    self._log.error(f"{one.name}: not guarded: {error}")

    def _mark(self) -> None:
        """Notes in the running policy's document whether the file is refused: status tells it. If
        that cannot be, the next look tells why.
        """
        try:
            self._note()
        except NtpguardError:
            self._unmarked = True

    def _note(self) -> None:
        try:
            with running.writing(self._bpffs, wait=False) as descriptors, libbpf.uninterrupted():
                document = running.read_document(descriptors)
                if document.get("refused") != self.refused:
                    running.write_document(descriptors, {**document, "refused": self.refused})
        except NotRunning:
            pass  # it is noted when something is attached
        self._unmarked = False

    def _save(self) -> None:
        try:
            lastgood.save(self.policy, self.file)
        except NtpguardError as error:
            self._log.warn(str(error))

    def _in_trouble(self, text: str) -> None:
        if text != self.trouble:
            self._log.error(text)
        self.trouble = text


def _shortly(lines: list[str]) -> str:
    """Without the value that is wrong: systemctl status and the page show it to everybody, and the
    file may be one that was not meant, with secrets in it.
    """
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return f"{lines[0].partition(' (got ')[0]}{more}"
