"""The tables of a policy file that come more than once: [[class]] and [[signature]]."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ntpguard.abi import CLASSES, SIGNATURES
from ntpguard.errors import PolicyError
from ntpguard.moments import CLOCK_TICK_NS, NANOSECONDS
from ntpguard.policy.compile import LONGEST_TOLERANCE, emission_interval
from ntpguard.policy.complaints import Checker, Place, got
from ntpguard.policy.kinds import Network, PrefixKind, Rate
from ntpguard.policy.lines import Path as Key
from ntpguard.policy.model import DEFAULT_CLASS, ClassPolicy, SignaturePolicy
from ntpguard.policy.prefixes import order_of
from ntpguard.policy.settings import (
    BURST,
    CLASS_SETTINGS,
    REQUIRED,
    SIGNATURE_SETTINGS,
    Setting,
)

CLOCK_TICK = Fraction(CLOCK_TICK_NS, NANOSECONDS)  # seconds
PROOF_BYTES = 8  # a header shape that fixes fewer is that of many clients


def burst_bounds(rate: Rate) -> tuple[int, int]:
    """The smallest and the largest burst that can be kept with a rate, on the clock there is."""
    per_second = rate.per_second
    # below one request a second, the clock's step is lost in the time between two requests
    least = math.ceil(per_second * CLOCK_TICK) + 1 if per_second >= 1 else 1
    return least, min(BURST.most, LONGEST_TOLERANCE // emission_interval(per_second) + 1)


def check_limit(one: ClassPolicy) -> None:
    """Raises PolicyError if the class's limit cannot be kept on the clock, or not be counted."""
    least, most = burst_bounds(one.rate)
    why = f"the clock has steps of up to {float(CLOCK_TICK) * 1000:.0f} ms"
    if one.burst > most:
        why = "more would take years to earn"
    if not least <= one.burst <= most:
        bound = f"at least {least}" if one.burst < least else f"at most {most}"
        raise PolicyError(
            [f"burst {one.burst} of class {one.name}: must be {bound} for {one.rate}: {why}"]
        )


def check_burst(checker: Checker, key: Key, one: ClassPolicy) -> None:
    """Complains at `key` of a limit that cannot be kept."""
    try:
        check_limit(one)
    except PolicyError as error:
        checker.complain(key, error.errors[0])


def read_classes(
    checker: Checker, value: Any, default: ClassPolicy, bits: dict[int, int]
) -> list[ClassPolicy]:
    """The classes of [[class]]; what one does not state is `default`'s. `bits`: a source's prefix
    length by IP version.
    """
    found: list[ClassPolicy] = []
    owners: dict[Network, str] = {}
    for key, name, table in _named(checker, "class", value, CLASS_SETTINGS, CLASSES - 1):
        read = _values(checker, key, table, CLASS_SETTINGS)
        file = read.pop("prefixes_file")
        places: dict[Network, Place] = {
            prefix: (*key, "prefixes", index) for index, prefix in enumerate(read.pop("prefixes"))
        }
        if file is not None:
            places |= _prefixes_of_file(checker, (*key, "prefixes_file"), file)
        own = {setting: one for setting, one in read.items() if one is not None}
        prefixes = tuple(sorted(places, key=order_of))
        one = replace(default, name=name, prefixes=prefixes, **own)
        if "prefixes" not in table and "prefixes_file" not in table:
            checker.complain(key, "a class needs prefixes or prefixes_file")
        check_burst(checker, (*key, "burst"), one)
        for prefix, place in places.items():
            owner = owners.setdefault(prefix, name)
            if owner != name:
                what = f'"{prefix}" is in class "{owner}" already: keep one of the two'
                checker.complain(place, what)
        longer = [prefix for prefix in prefixes if prefix.prefixlen > bits[prefix.version]]
        if longer and one.action == "limit":
            more = f" (and {len(longer) - 1} more)" if len(longer) > 1 else ""
            checker.warn(
                places[longer[0]],
                f"{longer[0]}{more} is part of one source (/{bits[longer[0].version]}): "
                "it shares that source's count",
            )
        found.append(one)
    return found


def read_signatures(checker: Checker, value: Any) -> list[SignaturePolicy]:
    """The signatures of [[signature]], in the file's order."""
    found: list[SignaturePolicy] = []
    for key, name, table in _named(checker, "signature", value, SIGNATURE_SETTINGS, SIGNATURES):
        one = SignaturePolicy(name=name, **_values(checker, key, table, SIGNATURE_SETTINGS))
        if not {"header", "source_port", "fraction"} & table.keys():
            checker.complain(key, "a signature needs header, source_port or fraction")
        fixed = one.header.fixed_bits / 8 if one.header else 0
        if one.when == "always" and one.mode == "enforce" and fixed < PROOF_BYTES:
            checker.warn(
                (*key, "when"),
                f"blocks within the limit too, and {fixed:g} bytes of its header are compared: "
                f"a shape is no proof: compare {PROOF_BYTES} or more, or begin with "
                'mode = "observe"',
            )
        found.append(one)
    return found


def _named(
    checker: Checker, kind: str, value: Any, rows: tuple[Setting, ...], most: int
) -> list[tuple[Key, str, dict[str, Any]]]:
    """Key, name and content of each table [[kind]]; complains of wrong names and keys."""
    tables = checker.tables(kind, value)
    if len(tables) > most:
        checker.complain((kind, most), f"at most {most} are possible (got {len(tables)})")
    named: dict[str, tuple[Key, str, dict[str, Any]]] = {}
    for index, table in enumerate(tables):
        key: Key = (kind, index)
        checker.unknown(table, key, [row.name for row in rows])
        name = checker.value(key, next(row for row in rows if row.name == "name"), table)
        if name is REQUIRED:
            name = f"{kind} {index}"
        elif name in named or (kind, name) == ("class", DEFAULT_CLASS):
            checker.complain((*key, "name"), f'"{name}" is taken: choose another')
            name = f"{kind} {index}"
        named[name] = (key, name, table)
    return list(named.values())


def _values(
    checker: Checker, key: Key, table: dict[str, Any], rows: tuple[Setting, ...]
) -> dict[str, Any]:
    return {row.name: checker.value(key, row, table) for row in rows if row.name != "name"}


def _prefixes_of_file(checker: Checker, key: Key, name: str) -> dict[Network, Place]:
    file = checker.base / name
    try:
        lines = checker.text_of(file).split("\n")
    except OSError as error:
        checker.complain(key, f"cannot read {file}: {error.strerror}")
        return {}
    except UnicodeDecodeError:
        checker.complain(key, f"{file}: not UTF-8 text")
        return {}
    kind = PrefixKind()
    found: dict[Network, Place] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                found[kind.read(text)] = f"{file}:{number}"
            except ValueError as error:
                checker.complain(f"{file}:{number}", f"{error} {got(text)}")
    return found
