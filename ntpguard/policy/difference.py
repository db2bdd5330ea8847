"""What two policies state differently, setting by setting."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntpguard.policy.kinds import Boolean, Integer, ListKind, network_of
from ntpguard.policy.model import ClassPolicy, Policy, SignaturePolicy
from ntpguard.policy.render import values_of
from ntpguard.policy.settings import CLASS_SETTINGS, SETTINGS, SIGNATURE_SETTINGS, Setting

FIRST = 3  # so many of what a list has more or less are named
Value = str | int | bool | None


@dataclass(frozen=True)
class ListChange:
    """How many items a list has more and less, and the first few of them."""

    added: int
    removed: int
    first_added: tuple[str, ...]
    first_removed: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            f"{verb} {', '.join(first)}" + (f" and {count - len(first)} more" * (count > FIRST))
            for verb, count, first in (
                ("added", self.added, self.first_added),
                ("removed", self.removed, self.first_removed),
            )
            if count
        ]
        return "; ".join(parts) or "in another order"


@dataclass(frozen=True)
class Change:
    """One setting's two values, as the policy file writes them; None: it is not stated at all, or
    its class or signature is not there. Of a list, `before` and `after` count its items.
    """

    setting: str
    before: Value
    after: Value
    items: ListChange | None = None

    def __str__(self) -> str:
        items = f": {self.items}" if self.items else ""
        return f"{self.setting}: {self.old_in_words()} -> {self.new_in_words()}{items}"

    def old_in_words(self) -> str:
        """The value before; of a list, how many."""
        return words(self.before)

    def new_in_words(self) -> str:
        """The value after; of a list, how many."""
        return words(self.after)


def words(value: Value) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)


def differences(
    before: Policy, after: Policy, held: Mapping[str, Sequence[bytes]] | None = None
) -> list[Change]:
    """Every setting that differs; empty exactly if the policies are equal.

    `held`: by class of `before` that keeps its prefixes, these, packed. Without it, what a class
    keeps must be the same in both, or nothing.
    """
    old, new = values_of(before), values_of(after)
    changes = [
        _change(row.key, row, old[row.key], new[row.key])
        for row in SETTINGS
        if old[row.key] != new[row.key]
    ]
    changes += _tables("class", before.classes[1:], after.classes[1:], CLASS_SETTINGS, held or {})
    changes += _tables("signature", before.signatures, after.signatures, SIGNATURE_SETTINGS, {})
    return changes


def _tables(
    kind: str,
    before: Sequence[ClassPolicy] | Sequence[SignaturePolicy],
    after: Sequence[ClassPolicy] | Sequence[SignaturePolicy],
    rows: Iterable[Setting],
    held: Mapping[str, Sequence[bytes]],
) -> list[Change]:
    old, new = {one.name: one for one in before}, {one.name: one for one in after}
    changes = [
        Change(f"{kind}.{name}", summary(one), None) for name, one in old.items() if name not in new
    ]
    for name, one in new.items():
        if name not in old:
            changes.append(Change(f"{kind}.{name}", None, summary(one)))
        elif one != old[name]:
            changes += _settings(f"{kind}.{name}", old[name], one, rows, held.get(name))
    both = [name for name in old if name in new]
    if both != [name for name in new if name in old]:
        changes.append(Change(f"order of {kind}", ", ".join(old), ", ".join(new)))
    return changes


def _settings(
    prefix: str, old: Any, new: Any, rows: Iterable[Setting], held: Sequence[bytes] | None
) -> list[Change]:
    changes = []
    for row in rows:
        if row.name == "prefixes_file":
            continue
        before, after = getattr(old, row.name), getattr(new, row.name)
        if row.name == "prefixes" and old.kept != new.kept:
            assert held is not None and not new.kept, "prefixes are not at hand"
            before, after = tuple(held), new.packed
        if before != after:
            changes.append(_change(f"{prefix}.{row.name}", row, before, after))
    return changes


def _change(setting: str, row: Setting, before: Any, after: Any) -> Change:
    if not isinstance(row.kind, ListKind):
        return Change(setting, value_of(row, before), value_of(row, after))
    old, new = set(before), set(after)
    added = [one for one in after if one not in old]
    removed = [one for one in before if one not in new]
    items = ListChange(
        len(added),
        len(removed),
        tuple(map(_item, added[:FIRST])),
        tuple(map(_item, removed[:FIRST])),
    )
    return Change(setting, len(before), len(after), items)


def _item(one: object) -> str:
    return str(network_of(one[:-1], one[-1]) if isinstance(one, bytes) else one)


def value_of(row: Setting, value: Any) -> Value:
    """A setting's value, as the policy file writes it; None: it is not stated."""
    if value is None and not getattr(row.kind, "off", False):
        return None
    if isinstance(row.kind, Integer | Boolean):
        return value  # type: ignore[no-any-return]
    return row.kind.write(value).strip('"')


def listed(value: object) -> str:
    """The first few items of a list, and how many more; "" if it is none."""
    if not isinstance(value, tuple):
        return ""
    if not value:
        return "none"
    more = f" and {len(value) - FIRST} more" if len(value) > FIRST else ""
    return ", ".join(map(str, value[:FIRST])) + more


def summary(one: ClassPolicy | SignaturePolicy) -> str:
    """A class or signature in a few words."""
    if isinstance(one, ClassPolicy):
        what = f"{one.rate} burst {one.burst}" if one.action == "limit" else one.action
        canary = ", observe" if one.mode == "observe" else ""
        return f"{what}{canary}, {one.prefix_count} prefixes"
    parts = [
        f"{row.name} {value_of(row, getattr(one, row.name))}"
        for row in SIGNATURE_SETTINGS
        if row.name not in ("name", "action") and getattr(one, row.name) is not None
    ]
    return ", ".join(parts)
