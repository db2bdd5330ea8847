"""What an operator changes while the guard runs: the mode, limits, entries. Each change is whole or
not made, and each is logged. The policy file stays as it is.
"""

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ntpguard import entries, journal, running, temporary
from ntpguard.document import effective_policy
from ntpguard.errors import NtpguardError, PolicyError, UsageError
from ntpguard.kernel import libbpf
from ntpguard.moments import Moment
from ntpguard.policy.check import check_limit
from ntpguard.policy.kinds import Network, Rate, RateKind
from ntpguard.policy.model import ClassPolicy, Policy
from ntpguard.policy.prefixes import WIDEST
from ntpguard.policy.settings import BURST, SOURCE_RATE
from ntpguard.policy.tables import burst_bounds
from ntpguard.temporary import MODE, Document, limit_of
from ntpguard.words import Action, Mode

REASON_LENGTH = 200


@dataclass(frozen=True)
class Change:
    """A mode or a limit, before and after; `until` a moment, `then` another."""

    before: str
    after: str
    until: Moment | None = None
    then: str | None = None

    def words(self, paint: Callable[[str], str] = str) -> str:
        """For people: "observe -> enforce until 14:32 (8m left), then observe"."""
        end = f" {self.until.words()}, then {paint(self.then or '')}" if self.until else ""
        return f"{paint(self.before)} -> {paint(self.after)}{end}"


def set_mode(bpffs: Path, mode: Mode, seconds: float | None) -> Change:
    """Changes the mode, for so long (None: for good)."""
    with _changing(bpffs) as descriptors:
        document = running.read_document(descriptors)
        policy = effective_policy({**document, "mode": None})
        stated, before = policy.mode, document["mode"] or policy.mode
        until = None if seconds is None else Moment.after(seconds)
        then = temporary.lasting(document, MODE) or stated
        # what the policy says itself is no change that lasts
        value = None if mode.word == stated and until is None else mode.word
        temporary.change(document, MODE, value, until)
        running.write(descriptors, replace(policy, mode=mode.word), document, prefixes=False)
        return _logged(MODE, Change(before, mode.word, until, then if until else None))


def set_limit(
    bpffs: Path, name: str, *, rate: str | None, burst: int | None, seconds: float | None
) -> Change:
    """Changes a class's limit, for so long (None: for good). What is None stays as it is for good.

    Raises UsageError for an unknown class, one that has no limit, a value that cannot be kept.
    """
    with _changing(bpffs) as descriptors:
        document = running.read_document(descriptors)
        what = limit_of(name)
        then = temporary.lasting(document, what)
        before, own = _class(document, name), _class(_with_limit(document, name, then), name)
        if own.action != "limit":
            raise UsageError(
                f"{name}: its action is {own.action}, a limit has no effect: "
                'set action = "limit" in the policy file first'
            )
        checked = _checked(own, rate, burst)
        value = dict(then or {})
        value |= {"rate": str(checked.rate)} if rate is not None else {}
        value |= {"burst": checked.burst} if burst is not None else {}
        until = None if seconds is None else Moment.after(seconds)
        temporary.change(document, what, value, until)
        running.write(descriptors, effective_policy(document), document, prefixes=False)
        last = _limit(own) if until else None
        return _logged(what, Change(_limit(before), _limit(checked), until, last))


def unset_limit(bpffs: Path, name: str) -> Change:
    """Takes a class's live limit back, a temporary one too."""
    with _changing(bpffs) as descriptors:
        document = running.read_document(descriptors)
        before = _class(document, name)
        temporary.change(document, limit_of(name), None, None)
        after = _class(document, name)
        running.write(descriptors, effective_policy(document), document, prefixes=False)
        return _logged(limit_of(name), Change(_limit(before), _limit(after)))


def set_entry(
    bpffs: Path,
    prefix: Network,
    action: Action,
    *,
    seconds: float | None,
    reason: str | None,
    wide: bool,
    session: str | None,
    warn: Callable[[str], None],
) -> entries.LiveEntry:
    """Blocks or exempts a prefix for so long (None: for ever); replaces the entry it has.

    `wide`: a very short prefix is meant. `session`: where the operator's own login comes from; what
    may be a slip is warned of. Raises UsageError.
    """
    _check_entry(prefix, action, reason, wide)
    with _changing(bpffs) as descriptors:
        document = running.read_document(descriptors)
        if action == Action.BLOCK:
            for text in _doubts(effective_policy(document), prefix, session):
                warn(text)
        stored = _entries(descriptors)
        before = stored.get(prefix)
        new = stored[prefix] = entries.set_entry(descriptors, prefix, action, seconds)
        note = entries.Note(journal.who(), reason)
        noted = entries.with_notes(document, stored, new, note)
        try:
            running.write_document(descriptors, noted)
        except NtpguardError as error:  # packets see the entry already
            warn(f"{prefix}: {action.word} holds, but who set it and why is not noted: {error}")
        because = f": {reason}" if reason else ""
        journal.record(f"entry {prefix}: {_state(before)} -> {_state(new)}{because}")
        return new


def clear_entry(bpffs: Path, prefix: Network) -> entries.LiveEntry:
    """Removes the live entry of exactly this prefix. Raises UsageError if there is none."""
    with _changing(bpffs) as descriptors:
        stored = _entries(descriptors)
        gone = stored.pop(prefix, None)
        if gone is None:
            near = [str(one) for one in stored if one.overlaps(prefix)]
            hint = f"near it: {', '.join(near[:8])}" if near else "ntpguard entries lists them"
            raise UsageError(f"{prefix}: no live entry has exactly this prefix: {hint}")
        entries.clear_entry(descriptors, prefix)
        with suppress(NtpguardError):  # a note without an entry is never shown
            document = running.read_document(descriptors)
            running.write_document(descriptors, entries.with_notes(document, stored))
        journal.record(f"entry {prefix}: {_state(gone)} -> none")
        return gone


@contextmanager
def _changing(bpffs: Path) -> Iterator[dict[str, int]]:
    """The running guard's maps. Ctrl-C may end the wait for another writer; then it is held back,
    so that no change is made by half, or without being logged.
    """
    with running.writing(bpffs) as descriptors, libbpf.uninterrupted():
        yield descriptors


def _logged(what: str, change: Change) -> Change:
    until = f" until {change.until.rfc3339()}, then {change.then}" if change.until else ""
    journal.record(f"{what}: {change.before} -> {change.after}{until}")
    return change


def _class(document: Document, name: str) -> ClassPolicy:
    policy = effective_policy(document)
    found = policy.class_named(name)
    if found is None:
        known = ", ".join(one.name for one in policy.classes)
        raise UsageError(f"{name}: no such class: there are {known}")
    return found


def _with_limit(document: Document, name: str, value: Any) -> Document:
    return {**document, "overrides": {**document["overrides"], name: value or {}}}


def _limit(one: ClassPolicy) -> str:
    return f"{one.rate} burst {one.burst}"


def _checked(own: ClassPolicy, rate: str | None, burst: int | None) -> ClassPolicy:
    """The class with another limit. Raises UsageError, with a limit that would be accepted."""
    wanted = own.burst if burst is None else burst
    new_rate = own.rate
    if rate is not None:
        try:
            new_rate = SOURCE_RATE.read(rate) or own.rate
        except ValueError as error:
            raise UsageError(f"--rate: {error} (got {rate!r}){_slower(rate, wanted)}") from None
    possible = f": try --burst {_nearest(new_rate, wanted)}"
    new = replace(own, rate=new_rate, burst=wanted)
    try:
        BURST.read(wanted)
        check_limit(new)
    except PolicyError as error:
        raise UsageError(f"{error}{possible}") from None
    except ValueError as error:
        raise UsageError(f"--burst: {error} (got {wanted}){possible}") from None
    return new


def _slower(rate: str, burst: int) -> str:
    """What to try for a rate that is too high; nothing for what is no rate at all."""
    try:
        RateKind(10**18).read(rate)
    except ValueError:
        return ""
    fastest = Rate(SOURCE_RATE.most, "second")
    return f": try --rate {fastest} --burst {_nearest(fastest, burst)}"


def _nearest(rate: Rate, burst: int) -> int:
    least, most = burst_bounds(rate)
    return max(least, min(burst, most))


def _check_entry(prefix: Network, action: Action, reason: str | None, wide: bool) -> None:
    shortest = WIDEST[prefix.version]
    if prefix.prefixlen < shortest and not wide:
        raise UsageError(
            f"{prefix}: shorter than /{shortest}: if every client in it is to be "
            f"{'blocked' if action == Action.BLOCK else 'exempt'}, add --yes"
        )
    if reason and (len(reason) > REASON_LENGTH or not reason.isprintable()):
        raise UsageError(
            f"--reason: must be one line of at most {REASON_LENGTH} printable characters "
            f"(got {len(reason)}: {reason!a:.60})"
        )


def _doubts(policy: Policy, prefix: Network, session: str | None) -> Iterator[str]:
    """Why blocking a prefix may be a slip. The guard limits NTP: it locks nobody out."""
    for one in policy.upstreams:
        if one.overlaps(prefix):
            yield (
                f"{prefix}: upstream {one} lies in it: its answers are dropped too: if this host "
                f"takes its time from there: ntpguard clear {prefix}"
            )
    if session and _holds(prefix, session):
        yield (
            f"{prefix}: your own session comes from there ({session}): it goes on, only NTP from "
            "there is dropped"
        )
    if policy.mode != "enforce":
        yield f"mode is {policy.mode}: nothing is dropped before ntpguard mode enforce"


def _holds(prefix: Network, address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]) in prefix
    except ValueError:
        return False


def _entries(descriptors: Mapping[str, int]) -> dict[Network, entries.LiveEntry]:
    return {one.prefix: one for one in entries.read_entries(descriptors)}


def _state(entry: entries.LiveEntry | None) -> str:
    if entry is None:
        return "none"
    moment = entry.moment()
    return f"{entry.action.word} {f'until {moment.rfc3339()}' if moment else 'for ever'}"
