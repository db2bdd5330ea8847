"""A policy in the making: what was carried over, from which line, and what could not be."""

import ipaddress
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from ntpguard.policy.kinds import SECONDS, Address, Network, Rate, quote
from ntpguard.policy.settings import BURST, CAPACITY, SETTINGS, SOURCE_RATE
from ntpguard.policy.tables import burst_bounds

WIDTH = 96
EVERYONE: tuple[Network, Network] = (
    ipaddress.IPv4Network("0.0.0.0/0"),
    ipaddress.IPv6Network("::/0"),
)
DEFAULT_CAPACITY = next(one.default for one in SETTINGS if one.key == "sources.capacity")
NEAR = "carried over as near as a policy can say it: {} burst {}."
KODS = (
    "KoDs are counted otherwise here: one for each source and kod.interval, none to a flood, none "
    "to those that did not heed them ([kod])."
)
OTHERS = (
    "whom no line {} is still refused by the daemon, without an answer, at the cost of a wake-up. "
    'To drop them before: a class with prefixes 0.0.0.0/0 and ::/0 and action "block", another one '
    "for whom it serves and for this host's own servers."
)


@dataclass(frozen=True)
class Line:
    """A directive, lower case, and its arguments."""

    file: str
    number: int
    words: tuple[str, ...]

    @property
    def directive(self) -> str:
        """The first word."""
        return self.words[0].lower()

    @property
    def arguments(self) -> tuple[str, ...]:
        """The others."""
        return self.words[1:]

    def __str__(self) -> str:
        """As a comment of TOML may have it."""
        text = f"{self.file}:{self.number}: {' '.join(self.words)}"
        return "".join(one if one.isprintable() else "?" for one in text)


@dataclass(frozen=True)
class Note:
    """Of a line that was not carried over, or not wholly: why, and what to do."""

    line: Line
    why: str


@dataclass(frozen=True)
class Kept:
    """A limit as the daemon has it."""

    rate: Rate
    burst: int
    leak: Fraction | None = None
    kod: bool = True


def rate_of(per_second: Fraction) -> Rate:
    """The rate in the smallest unit that says it exactly, else the next larger one in days; within
    what a policy may say.
    """
    per_second = min(per_second, Fraction(SOURCE_RATE.most))
    for unit, seconds in SECONDS.items():
        count = per_second * seconds
        if count >= 1 and count.denominator == 1:
            return Rate(int(count), unit)
    return Rate(max(1, math.ceil(per_second * SECONDS["day"])), "day")


def burst_of(burst: int, rate: Rate) -> int:
    """A burst within what a policy may say beside this rate."""
    least, most = burst_bounds(rate)
    return min(max(burst, least), most, BURST.most)


@dataclass
class Draft:
    """What has been found so far. A class's key: action, kod (None: the default's), control."""

    daemon: str
    interfaces: dict[str, Line] = field(default_factory=dict)
    ports: dict[int, Line] = field(default_factory=dict)
    destinations: dict[Address, Line] = field(default_factory=dict)
    upstreams: dict[Network, Line] = field(default_factory=dict)
    capacity: tuple[int, Line] | None = None
    limit: tuple[Kept, Line | None] | None = None
    class_limit: Kept | None = None  # of classes, where [limit] has none of the daemon's
    classes: dict[tuple[str, bool | None, bool], dict[Network, Line]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # of what no line says

    def note(self, line: Line, why: str) -> None:
        """The line is not carried over, or not wholly."""
        note = Note(line, "".join(one if one.isprintable() else "?" for one in why))
        if note not in self.notes:
            self.notes.append(note)

    def hold(self, sources: int, line: Line) -> None:
        """A table for so many. One smaller than ntpguard's default would only forget more."""
        if sources > DEFAULT_CAPACITY:
            self.capacity = min(sources, CAPACITY.most), line
        else:
            why = f"room for some {sources} clients; ntpguard's default holds {DEFAULT_CAPACITY}."
            self.note(line, why)

    def classify(
        self,
        prefix: Network,
        line: Line,
        action: str,
        *,
        kod: bool | None = None,
        control: bool = False,
    ) -> None:
        """The prefix's class; the last line that names it decides."""
        for prefixes in self.classes.values():
            prefixes.pop(prefix, None)
        self.classes.setdefault((action, kod, control), {})[prefix] = line

    def toml(self) -> str:
        """The policy file."""
        out = [
            f"# What {self.daemon}'s configuration says, as a policy of ntpguard.",
            "# Write it to /etc/ntpguard/ntpguard.toml, then: ntpguard policy check.",
            "# ntpguard.toml(5) says what else there is.",
            *(f"# {one}" for one in self.remarks),
            "",
        ]
        if self.interfaces:
            out += [*_from(self.interfaces.values()), f"interfaces = {_array(self.interfaces)}"]
        else:
            out += ["# where your clients come in:", '# interfaces = ["eth0"]']
        out += [
            "",
            "# counts what would happen, and passes every packet; then: enforce",
            'mode = "observe"',
        ]
        for name, found in (
            ("ports", self.ports),
            ("destinations", self.destinations),
            ("upstreams", self.upstreams),
        ):
            if found:
                out += ["", *_from(found.values()), f"{name} = {_array(found)}"]
        if self.capacity:
            count, line = self.capacity
            out += ["", f"# {line}", "[sources]", f"capacity = {count}"]
        out += self._limit()
        for index, (key, prefixes) in enumerate(self._ordered(), 1):
            action, kod, control = key
            out += ["", *_from(prefixes.values()), "[[class]]"]
            out += [f'name = "{action}-{index}"', f"prefixes = {_array(prefixes)}"]
            out += [f'action = "{action}"'] if action != "limit" else []
            if action == "limit" and self.class_limit:
                out += [
                    f"rate = {quote(self.class_limit.rate)}",
                    f"burst = {self.class_limit.burst}",
                ]
            out += [f"kod = {str(kod).lower()}"] if kod is not None else []
            out += ["control = true"] if control else []
        if self.notes:
            out += ["", "# Not carried over:"]
            for why in dict.fromkeys(one.why for one in self.notes):
                out += ["#", *(f"# {one.line}" for one in self.notes if one.why == why)]
                out += _comment(why)
        return "\n".join(out) + "\n"

    def _ordered(self) -> list[tuple[tuple[str, bool | None, bool], dict[Network, Line]]]:
        return [(key, prefixes) for key, prefixes in self.classes.items() if prefixes]

    def _limit(self) -> list[str]:
        if not self.limit:
            return []
        kept, line = self.limit
        out = ["", *([f"# {line}"] if line else [f"# {self.daemon}'s default"]), "[limit]"]
        out += [f"rate = {quote(kept.rate)}", f"burst = {kept.burst}"]
        out += [f"leak = {quote(kept.leak)}"] if kept.leak is not None else []
        if not kept.kod:
            out += [
                "",
                f"# {self.daemon} sends none; without this ntpguard does: see ntpguard kod",
            ]
            out += ["[kod]", "enabled = false"]
        return out


def _from(lines: Iterable[Line]) -> list[str]:
    return list(dict.fromkeys(f"# {one}" for one in lines))


def _array(items: Iterable[object]) -> str:
    return "[" + ", ".join(str(one) if isinstance(one, int) else quote(one) for one in items) + "]"


def _comment(text: str) -> list[str]:
    words = re.findall(rf"\S.{{0,{WIDTH}}}(?=\s|$)", text)
    return [f"#   {one}" for one in words]
