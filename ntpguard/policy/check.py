"""Reading and checking a policy file: all errors in one run, each with its line and its remedy."""

import difflib
import math
import re
import tomllib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ntpguard.abi import CLASSES
from ntpguard.errors import PolicyError
from ntpguard.policy.compile import LONGEST_TOLERANCE, emission_interval
from ntpguard.policy.kinds import Network, read_prefix
from ntpguard.policy.model import DEFAULT_CLASS, ClassPolicy, Policy
from ntpguard.policy.settings import CLASS_SETTINGS, SETTINGS

CLOCK_TICK = Fraction(1, 100)  # seconds; the coarse clock's, at HZ=100
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
SECTIONS = sorted({row.section for row in SETTINGS if row.section})


def line_of_keys(text: str) -> dict[str, int]:
    """Key path -> line, for keys that begin a line; a class is class[0], class[1] ..."""
    lines: dict[str, int] = {}
    section, classes = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[\[\s*([\w-]+)\s*\]\]", line):
            section = f"{match[1]}[{classes}]"
            classes += 1
            lines[section] = number
        elif match := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            section = match[1]
            lines[section] = number
        elif match := re.match(r"\s*([\w-]+)\s*=", line):
            lines.setdefault(f"{section}.{match[1]}" if section else match[1], number)
    return lines


class _Checker:
    """Collects complaints while values are read."""

    def __init__(self, text: str, name: str, base: Path) -> None:
        self.name = name
        self.base = base
        self.lines = line_of_keys(text)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def where(self, path: str) -> str:
        line = self.lines.get(path) or self.lines.get(path.rpartition(".")[0]) or 1
        return f"{self.name}:{line}"

    def complain(self, path: str, what: str) -> None:
        self.errors.append(f"{self.where(path)}: {shown(path)}: {what}")

    def unknown(self, path: str, name: str, known: list[str]) -> None:
        close = difflib.get_close_matches(name, known, 1)
        hint = f'did you mean "{close[0]}"?' if close else "known: " + ", ".join(known)
        self.complain(path, f"unknown setting: {hint}")

    def value(self, path: str, row: Any, table: dict[str, Any]) -> Any:
        if row.name not in table:
            return row.default
        got = table[row.name]
        try:
            return row.kind.read(got)
        except ValueError as error:
            short = repr(got) if len(repr(got)) <= 40 else repr(got)[:37] + "..."
            self.complain(path, f"{error} (got {short})")
            return row.default


def shown(path: str) -> str:
    """A key path as people know it: class[1].rate is class.rate."""
    return re.sub(r"\[\d+\]", "", path)


def parse_policy(text: str, name: str = "policy", base: Path | None = None) -> Policy:
    """The policy that `text` states. `name` stands in messages; `base` is where prefixes_file is
    relative to. Raises PolicyError with every complaint.
    """
    checker = _Checker(text, name, base or Path())
    try:
        top = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        what = re.sub(r" \(at .*\)", "", str(error))
        number = line[1] if line else len(text.splitlines()) or 1
        raise PolicyError([f"{name}:{number}: not TOML: {what}"]) from None
    except ValueError as error:  # an integer that Python refuses to read
        raise PolicyError([f"{name}:1: not TOML: {error}"]) from None

    known_top = [row.name for row in SETTINGS if not row.section] + [*SECTIONS, "class"]
    for key in top:
        if key not in known_top:
            checker.unknown(key, key, known_top)
    values: dict[str, Any] = {}
    for section in ["", *SECTIONS]:
        table = top if not section else top.get(section, {})
        if not isinstance(table, dict):
            checker.complain(section, f"must be a table, [{section}] (got {table!r})")
            table = {}
        rows = [row for row in SETTINGS if row.section == section]
        for key in table if section else ():
            if key not in [row.name for row in rows]:
                checker.unknown(f"{section}.{key}", key, [row.name for row in rows])
        for row in rows:
            values[row.key] = checker.value(row.key, row, table)

    default = ClassPolicy(
        name=DEFAULT_CLASS,
        rate=values["limit.rate"],
        burst=values["limit.burst"],
        leak=values["limit.leak"],
        kod=values["kod.enabled"],
    )
    _check_burst(checker, "limit.burst", default)
    classes = _classes(checker, top.get("class", []), default)
    _check_prefixes(checker, classes, values)
    if checker.errors:
        raise PolicyError(checker.errors)
    return Policy(
        mode=values["mode"],
        ports=values["ports"],
        destinations=values["destinations"],
        interfaces=values["interfaces"],
        xdp=values["xdp"],
        on_exit=values["on_exit"],
        capacity=values["sources.capacity"],
        ipv4_prefix=values["sources.ipv4_prefix"],
        ipv6_prefix=values["sources.ipv6_prefix"],
        leak_max=values["limit.leak_max"],
        kod_interval=values["kod.interval"],
        kod_patience=values["kod.patience"],
        kod_flood=values["kod.flood"],
        kod_max_rate=values["kod.max_rate"],
        newcomers_rate=values["newcomers.rate"],
        classes=(default, *classes),
        warnings=tuple(checker.warnings),
    )


def read_policy(path: Path) -> Policy:
    """The policy in the file at `path`. Raises PolicyError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyError([f"{path}: cannot read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise PolicyError([f"{path}: not UTF-8 text"]) from None
    return parse_policy(text, str(path), path.parent)


def check_limit(one: ClassPolicy) -> None:
    """Raises PolicyError if the class's limit cannot be kept on the clock, or not be counted."""
    rate = one.rate.per_second
    # below one request a second, the clock's step is lost in the time between two requests
    least = math.ceil(rate * CLOCK_TICK) + 1 if rate >= 1 else 1
    most = LONGEST_TOLERANCE // emission_interval(rate) + 1
    why = f"the clock has steps of up to {float(CLOCK_TICK) * 1000:.0f} ms"
    if one.burst > most:
        why = "more would take years to earn"
    if not least <= one.burst <= most:
        bound = f"at least {least}" if one.burst < least else f"at most {most}"
        raise PolicyError(
            [f"burst {one.burst} of class {one.name}: must be {bound} for {one.rate}: {why}"]
        )


def _check_burst(checker: _Checker, path: str, one: ClassPolicy) -> None:
    try:
        check_limit(one)
    except PolicyError as error:
        checker.complain(path, error.errors[0])


def _classes(checker: _Checker, tables: Any, default: ClassPolicy) -> list[ClassPolicy]:
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        checker.complain("class", f"must be tables, [[class]] (got {tables!r})")
        return []
    if len(tables) >= CLASSES:
        checker.complain("class", f"at most {CLASSES - 1} classes (got {len(tables)})")
    known = [row.name for row in CLASS_SETTINGS]
    found: list[ClassPolicy] = []
    for index, table in enumerate(tables):
        path = f"class[{index}]"
        for key in table:
            if key not in known:
                checker.unknown(f"{path}.{key}", key, known)
        name = table.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            wanted = "must be 1 to 32 of a-z, 0-9, - and _"
            got = f"(got {name!r})" if "name" in table else "(missing)"
            checker.complain(f"{path}.name", f"{wanted} {got}")
            name = f"class-{index}"
        if name == DEFAULT_CLASS or name in [one.name for one in found]:
            checker.complain(f"{path}.name", f'"{name}" is taken: choose another')
        read = {
            row.name: checker.value(f"{path}.{row.name}", row, table)
            for row in CLASS_SETTINGS
            if row.name not in ("name", "prefixes_file")
        }
        prefixes = read.pop("prefixes") + _prefixes_file(checker, path, table.get("prefixes_file"))
        own = {key: value for key, value in read.items() if value is not None}
        one = replace(default, name=name, prefixes=tuple(sorted(set(prefixes), key=_order)), **own)
        if "prefixes" not in table and "prefixes_file" not in table:
            checker.complain(path, "a class needs prefixes or prefixes_file")
        _check_burst(checker, f"{path}.burst", one)
        found.append(one)
    return found


def _order(prefix: Network) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def _prefixes_file(checker: _Checker, path: str, name: Any) -> tuple[Network, ...]:
    if name is None:
        return ()
    key = f"{path}.prefixes_file"
    if not isinstance(name, str):
        checker.complain(key, f"must be a file name (got {name!r})")
        return ()
    file = checker.base / name
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        checker.complain(key, f"cannot read {file}: {getattr(error, 'strerror', error)}")
        return ()
    found: list[Network] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                found.append(read_prefix(text))
            except ValueError as error:
                checker.errors.append(f"{file}:{number}: {error}")
    return tuple(found)


def _check_prefixes(checker: _Checker, classes: list[ClassPolicy], values: dict[str, Any]) -> None:
    owners: dict[Network, str] = {}
    bits = {4: values["sources.ipv4_prefix"], 6: values["sources.ipv6_prefix"]}
    for index, one in enumerate(classes):
        for prefix in one.prefixes:
            if prefix in owners:
                checker.complain(
                    f"class[{index}].prefixes",
                    f'"{prefix}" is in class "{owners[prefix]}" already: keep one of the two',
                )
            owners.setdefault(prefix, one.name)
            if prefix.prefixlen > bits[prefix.version] and one.action == "limit":
                checker.warnings.append(
                    f"{checker.where(f'class[{index}].prefixes')}: class.prefixes: {prefix} is "
                    f"part of one source (/{bits[prefix.version]}): it shares that source's count"
                )


DEFAULT = parse_policy("", "built-in policy")
