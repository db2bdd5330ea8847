"""policy apply and diff: a new policy for the running guard, whole and at once; sources stay.

What the program or the source table was made for cannot be changed so: that is refused, with the
way to change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ntpguard import abi, journal, lifecycle, running, tries
from ntpguard.document import effective_policy, new_document, with_live
from ntpguard.errors import NtpguardError
from ntpguard.kernel import bpffs as pinned
from ntpguard.kernel import interfaces, libbpf, maps
from ntpguard.policy.compile import table_shape
from ntpguard.policy.difference import Change, differences
from ntpguard.policy.model import DEFAULT_CLASS, Policy
from ntpguard.policy.paste import paste
from ntpguard.policy.prefixes import light
from ntpguard.policy.tables import check_limit
from ntpguard.reading import Running
from ntpguard.temporary import MODE, Document, limit_of, until

# of the document: what new_document states anew; the rest are live changes
OF_FILE = {"schema", "file", "files", "text", "kept", "applied", "refused"}
LOGGED = 5  # so many changes are told in the system's log


@dataclass(frozen=True)
class Applied:
    """What an apply changes, and the live changes that it drops and keeps, in words."""

    changes: list[Change]
    dropped: list[str]
    kept: list[str]


def apply(
    policy: Policy, file: str, *, bpffs: Path, keep_live: bool = False, dry_run: bool = False
) -> Applied:
    """Makes the guard run this policy, read from `file`; with `dry_run`, tells what it would do.

    Raises NotRunning, PermissionNeeded; NtpguardError if it needs more than that, PolicyError if a
    live limit cannot be kept. Then nothing is changed.
    """
    with running.writing(bpffs) as descriptors:
        before = running.read_document(descriptors)
        old = effective_policy({**before, "overrides": {}, "mode": None})
        _require_possible(old, policy, file, running.read_table(descriptors["table"]), bpffs)
        document = new_document(policy, file)
        live = live_changes(before)
        kept: dict[str, str] = {}
        if keep_live:
            names = {one.name for one in policy.classes}
            document |= {key: before[key] for key in before.keys() - OF_FILE}
            document["overrides"] = {
                name: one for name, one in before["overrides"].items() if name in names
            }
            document["temporary"] = {
                what: one
                for what, one in before["temporary"].items()
                if what == MODE or what in {limit_of(name) for name in names}
            }
            kept = live_changes(document)
        new = with_live(policy, document)
        for name in document["overrides"]:
            one = new.class_named(name)
            assert one is not None
            check_limit(one)
        changes = _changes(descriptors, before, new)
        if not dry_run:
            # a change is logged whether or not somebody interrupts it
            with libbpf.uninterrupted():
                running.write(descriptors, new, document)
                journal.record(f"policy {file} applied: {_summary(changes)}")
    dropped = [text for key, text in live.items() if key not in kept]
    return Applied(changes, dropped, list(kept.values()))


def _summary(changes: Sequence[Change]) -> str:
    more = f" and {len(changes) - LOGGED} more" if len(changes) > LOGGED else ""
    return "; ".join(map(str, changes[:LOGGED])) + more or "no setting changes"


def live_changes(document: Document) -> dict[str, str]:
    """The live changes in words, by what they change, as temporary names it."""
    found = {}
    if document["mode"]:
        found[MODE] = f"mode {document['mode']}"
    for name, own in document["overrides"].items():
        limit = " ".join(f"{key} {own[key]}" for key in ("rate", "burst") if key in own)
        found[limit_of(name)] = f"limit of {name}: {limit}"
    for what in found:
        end = until(document, what)
        found[what] += f" until {end.rfc3339()}" if end else ""
    return found


def _changes(descriptors: dict[str, int], document: Document, new: Policy) -> list[Change]:
    old, lighter = effective_policy(document), light(new)
    if _keeps_the_same(old, lighter):
        return differences(old, lighter)
    return differences(old, new, tries.held_prefixes(descriptors, old, document))


def _keeps_the_same(old: Policy, new: Policy) -> bool:
    """Whether what each class of `old` keeps is known to be what `new`'s keeps."""
    mine = {one.name: one.kept for one in new.classes}
    return all(one.kept == mine.get(one.name) for one in old.classes)


@dataclass(frozen=True)
class Compared:
    """What a file says otherwise than what runs, what of it was changed live, the TOML to paste."""

    changes: list[Change]
    live: set[str]
    toml: str


def compare(guard: Running, file: Policy, text: str) -> Compared:
    """The running policy, and the policy `file` that `text` makes."""
    document, running_policy, lighter = guard.document(), guard.policy(), light(file)
    if _keeps_the_same(running_policy, lighter):
        file = lighter
    else:
        running_policy = guard.whole_policy()
    changes = differences(running_policy, file)
    live = {"mode"} if document["mode"] else set()
    for name, own in document["overrides"].items():
        live |= {f"limit.{key}" if name == DEFAULT_CLASS else f"class.{name}.{key}" for key in own}
    return Compared(changes, live, paste(running_policy, file, text))


def _require_possible(old: Policy, new: Policy, file: str, table: abi.Table, bpffs: Path) -> None:
    """Raises NtpguardError that names each setting that only up and down can change."""
    guarded = interfaces.interfaces_of(maps.live_links(pinned.pins(bpffs)))
    names = [one.name for one in guarded]
    wrong = []
    if new.ports != old.ports:
        wrong.append(
            f"ports: {_list(old.ports)} -> {_list(new.ports)}: the program is loaded for them: "
            f"run ntpguard up {' '.join(names)} --policy {file} (it is swapped: no packet goes "
            "unguarded, no source is forgotten)"
        )
    difference = lifecycle.table_difference(table, table_shape(new))
    if difference:
        wrong.append(f"{difference}, then ntpguard up {' '.join(names)} --policy {file}")
    if new.interfaces != old.interfaces and new.interfaces:
        more = [name for name in new.interfaces if name not in names]
        fewer = [name for name in names if name not in new.interfaces]
        if more:
            wrong.append(
                f"interfaces: {_list(more)} not guarded: run ntpguard up {' '.join(more)} "
                f"--policy {file}"
            )
        if fewer:
            wrong.append(
                f"interfaces: {_list(fewer)} guarded, the policy does not name it: run ntpguard "
                f"down {' '.join(fewer)}"
            )
    if new.xdp != old.xdp and new.xdp != "auto":
        wrong += [
            f"xdp: {one.name} is attached in mode {one.xdp}, the policy wants {new.xdp}: run "
            f"ntpguard down {one.name}, then ntpguard up {one.name} --policy {file}"
            for one in guarded
            if one.xdp != new.xdp
        ]
    if wrong:
        raise NtpguardError("\n".join([*wrong, "nothing is applied"]))


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
