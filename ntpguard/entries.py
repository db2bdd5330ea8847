"""Live entries: prefixes exempted or blocked for a while, beside the policy.

The packet path itself honours the expiry: no process need run when it comes. An entry that expires
gives way to what it lay over: each names the longest entry over it that outlives it (its fallback).
Every change is in an order in which each step alone is right, so that it may end after any. Who set
an entry, and why, is a note in the running policy's document.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ntpguard import abi
from ntpguard.errors import NtpguardError, UsageError
from ntpguard.kernel import libbpf
from ntpguard.moments import NANOSECONDS, Moment, monotonic_ns
from ntpguard.policy.kinds import Network, network_of
from ntpguard.running import set_root_bit, trie_key
from ntpguard.temporary import Document
from ntpguard.words import Action, Family


@dataclass(frozen=True)
class LiveEntry:
    """A prefix, what is done with it, and until when (CLOCK_MONOTONIC; 0: for ever)."""

    prefix: Network
    action: Action
    expires_ns: int

    def outlives(self, other: "LiveEntry") -> bool:
        """Whether this one still holds when the other has expired."""
        return other.expires_ns != 0 and (not self.expires_ns or self.expires_ns > other.expires_ns)

    def moment(self) -> Moment | None:
        """When it expires; None: never."""
        return Moment.at(self.expires_ns) if self.expires_ns else None

    def words(self) -> str:
        """For people: "block until 14:32 (8m left)"."""
        moment = self.moment()
        return f"{self.action.word} {moment.words() if moment else 'for ever'}"


@dataclass(frozen=True)
class Note:
    """Who set a live entry, and why; None: unknown, or no reason given."""

    by: str | None = None
    reason: str | None = None


def note_of(document: Document, entry: LiveEntry) -> Note:
    """What the running policy's document notes of an entry: of this one, not of one before it."""
    note = document.get("notes", {}).get(str(entry.prefix))
    if note and (note["action"], note["expires_ns"]) == (entry.action.word, entry.expires_ns):
        return Note(note["by"], note["reason"])
    return Note()


def with_notes(
    document: Document,
    stored: Mapping[Network, LiveEntry],
    new: LiveEntry | None = None,
    note: Note | None = None,
) -> Document:
    """The document with a note on the new entry, and without those whose entry has gone."""
    there = {str(prefix) for prefix in stored}
    notes: dict[str, Any] = {
        prefix: one
        for prefix, one in document.get("notes", {}).items()
        if prefix in there and not (new and prefix == str(new.prefix))
    }
    if new and note:
        notes[str(new.prefix)] = {
            "action": new.action.word,
            "expires_ns": new.expires_ns,
            "by": note.by,
            "reason": note.reason,
        }
    return {**document, "notes": notes}


def read_entries(descriptors: Mapping[str, int]) -> list[LiveEntry]:
    """Every live entry that has not expired."""
    now = monotonic_ns()
    found = [one for family in Family for one in _stored(descriptors, family)]
    return [one for one in found if not one.expires_ns or one.expires_ns > now]


def set_entry(
    descriptors: Mapping[str, int], prefix: Network, action: Action, seconds: float | None
) -> LiveEntry:
    """Exempts or blocks a prefix for so long (None: for ever); an entry it has already is replaced.

    Raises UsageError if too many entries would lie over one another, or there are too many.
    """
    family = _family(prefix)
    now = monotonic_ns()
    expires = 0 if seconds is None else now + int(seconds * NANOSECONDS)
    new = LiveEntry(prefix, action, expires)
    stored = {one.prefix: one for one in clean_entries(descriptors, family)}
    stored[prefix] = new
    if len(stored) > abi.ENTRIES:
        raise UsageError(f"{prefix}: {abi.ENTRIES} live entries are there already: clear some")
    inside = [one for one in stored.values() if _covers(prefix, one.prefix)]
    for one in inside:
        if _depth(one, stored) > abi.ENTRY_DEPTH:
            raise UsageError(
                f"{prefix}: {abi.ENTRY_DEPTH} live entries lie over {one.prefix} already, each "
                "outliving the next: clear one of them"
            )
    set_root_bit(descriptors, abi.ROOT_ENTRIES_SHIFT + family, True)
    # who falls back to the new one does so before it is there: until then, to what it lies over
    before = {one.prefix for one in inside if _fallback(one, stored) is new}
    for one in sorted(inside, key=lambda one: (one.prefix not in before, one is not new)):
        _store(descriptors, one, stored)
    return new


def clear_entry(descriptors: Mapping[str, int], prefix: Network) -> LiveEntry | None:
    """Removes the live entry of exactly this prefix. Returns it, or None if there was none."""
    family = _family(prefix)
    stored = {one.prefix: one for one in clean_entries(descriptors, family)}
    gone = stored.pop(prefix, None)
    if gone:
        libbpf.map_delete(_fd(descriptors, family), trie_key(prefix))
        for one in stored.values():
            if _covers(prefix, one.prefix):
                _store(descriptors, one, stored)
        if not stored:
            with suppress(NtpguardError):  # then packets look into an empty trie
                set_root_bit(descriptors, abi.ROOT_ENTRIES_SHIFT + family, False)
    return gone


def clean_entries(descriptors: Mapping[str, int], family: Family) -> list[LiveEntry]:
    """Removes what has expired; returns what has not. What lies over an expired entry has named
    a fallback that holds without it.
    """
    now = monotonic_ns()
    living = []
    for one in _stored(descriptors, family):
        if one.expires_ns and one.expires_ns <= now:
            libbpf.map_delete(_fd(descriptors, family), trie_key(one.prefix))
        else:
            living.append(one)
    return living


def clean_expired(descriptors: Mapping[str, int], family: Family) -> int:
    """Removes what has expired; packets skip the look-up if nothing is left. Returns how many."""
    before = len(_stored(descriptors, family))
    living = clean_entries(descriptors, family)
    if not living:
        set_root_bit(descriptors, abi.ROOT_ENTRIES_SHIFT + family, False)
    return before - len(living)


def _family(prefix: Network) -> Family:
    return Family.IPV4 if prefix.version == 4 else Family.IPV6


def _fd(descriptors: Mapping[str, int], family: Family) -> int:
    return descriptors[f"entries_{family.word}"]


def _stored(descriptors: Mapping[str, int], family: Family) -> list[LiveEntry]:
    size = abi.size(abi.PrefixIpv4 if family == Family.IPV4 else abi.PrefixIpv6)
    found = []
    for key in list(libbpf.map_keys(_fd(descriptors, family), size)):
        raw = libbpf.map_lookup(_fd(descriptors, family), key, abi.size(abi.Entry))
        # a lookup finds the longest prefix: another one, if this has gone meanwhile
        if raw is not None:
            entry = abi.Entry.from_buffer_copy(raw)
            prefix = network_of(key[4:], int.from_bytes(key[:4], "little"))
            found.append(LiveEntry(prefix, Action(entry.action), int(entry.expires_ns)))
    return found


def _covers(shorter: Network, longer: Network) -> bool:
    return shorter.prefixlen <= longer.prefixlen and longer.network_address in shorter


def _fallback(one: LiveEntry, stored: Mapping[Network, LiveEntry]) -> LiveEntry | None:
    for length in range(one.prefix.prefixlen - 1, -1, -1):
        over = stored.get(one.prefix.supernet(new_prefix=length))
        if over and over.outlives(one):
            return over
    return None


def _depth(one: LiveEntry, stored: Mapping[Network, LiveEntry]) -> int:
    depth, over = 1, _fallback(one, stored)
    while over:
        depth, over = depth + 1, _fallback(over, stored)
    return depth


def _store(
    descriptors: Mapping[str, int], one: LiveEntry, stored: Mapping[Network, LiveEntry]
) -> None:
    over = _fallback(one, stored)
    length = over.prefix.prefixlen if over else abi.ENTRY_NO_FALLBACK
    entry = abi.Entry(expires_ns=one.expires_ns, action=one.action, fallback=length)
    libbpf.map_update(_fd(descriptors, _family(one.prefix)), trie_key(one.prefix), bytes(entry))
