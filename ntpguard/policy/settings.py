"""Every setting of the policy file, one row each: checking and showing read it here."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ntpguard.policy.kinds import (
    Addresses,
    Boolean,
    Choice,
    Integer,
    Interval,
    Kind,
    ListKind,
    Ports,
    Prefixes,
    Rate,
    RateKind,
    Share,
)

# the coarse clock has 4 to 10 ms steps, and a source's limit must be told apart from them
SOURCE_RATE = RateKind(10_000)
TOTAL_RATE = RateKind(10_000_000)
BURST = Integer(1, 1_000_000)
REQUIRED = object()


@dataclass(frozen=True)
class Setting:
    """One setting; `name` is unique within its section ("" is the file's top level)."""

    section: str
    name: str
    kind: Kind
    default: Any
    meaning: str

    @property
    def key(self) -> str:
        """As messages name it: "limit.rate"."""
        return f"{self.section}.{self.name}" if self.section else self.name


SETTINGS: tuple[Setting, ...] = (
    Setting("", "interfaces", ListKind(), (), "interfaces to guard; or on the command line"),
    Setting(
        "",
        "mode",
        Choice(("enforce", "observe", "off")),
        "observe",
        "observe counts what would happen and passes every packet",
    ),
    Setting("", "ports", Ports(), (123,), "UDP ports guarded"),
    Setting("", "destinations", Addresses(), (), "addresses guarded; none: any"),
    Setting("", "xdp", Choice(("auto", "native", "skb")), "auto", "where the program runs"),
    Setting(
        "",
        "on_exit",
        Choice(("keep", "detach")),
        "keep",
        "whether enforcement outlives the daemon",
    ),
    Setting(
        "sources",
        "capacity",
        Integer(1024, 16_777_216),
        1_048_576,
        "sources held with 1 % loss, 64 bytes each",
    ),
    Setting("sources", "ipv4_prefix", Integer(8, 32), 32, "bits of an IPv4 address in a source"),
    Setting("sources", "ipv6_prefix", Integer(16, 64), 64, "bits of an IPv6 address in a source"),
    Setting("limit", "rate", SOURCE_RATE, Rate(60, "minute"), "requests a source may send"),
    Setting("limit", "burst", BURST, 32, "requests it may send at once after a pause"),
    Setting("limit", "leak", Share(), Fraction(1, 4), "share of excess answered anyway"),
    Setting(
        "limit", "leak_max", TOTAL_RATE, Rate(10_000, "second"), "excess answered, all sources"
    ),
    Setting("kod", "enabled", Boolean(), True, "whether excess may be answered with a KoD"),
    Setting("kod", "interval", Interval(1, 3600), 16, "time between two KoDs to one source"),
    Setting("kod", "patience", Integer(1, 15), 4, "KoDs not heeded before a source gets no more"),
    Setting("kod", "flood", Integer(1, 254), 64, "more excess since the last pass: no KoD"),
    Setting("kod", "max_rate", TOTAL_RATE, Rate(1000, "second"), "KoDs, all sources together"),
    Setting(
        "newcomers",
        "rate",
        TOTAL_RATE,
        Rate(20_000, "second"),
        "requests of sources that have no slot, together",
    ),
)

CLASS_SETTINGS: tuple[Setting, ...] = (
    Setting("class", "name", ListKind(), REQUIRED, "how commands and metrics name the class"),
    Setting("class", "prefixes", Prefixes(), (), "its sources"),
    Setting("class", "prefixes_file", ListKind(), None, "more of them, one a line"),
    Setting(
        "class", "action", Choice(("limit", "exempt", "block")), "limit", "what it does with them"
    ),
    Setting("class", "rate", SOURCE_RATE, None, "as in [limit], which holds without it"),
    Setting("class", "burst", BURST, None, "as in [limit], which holds without it"),
    Setting("class", "leak", Share(), None, "as in [limit], which holds without it"),
    Setting("class", "kod", Boolean(), None, "as kod.enabled, which holds without it"),
    Setting("class", "control", Boolean(), False, "whether modes 6 and 7 pass"),
    Setting(
        "class",
        "mode",
        Choice(("enforce", "observe")),
        "enforce",
        "observe: a canary for this class",
    ),
)


def setting(section: str, name: str) -> Setting:
    """The row of one setting. Raises KeyError."""
    rows = CLASS_SETTINGS if section == "class" else SETTINGS
    for row in rows:
        if (row.section, row.name) == (section, name):
            return row
    raise KeyError(f"{section}.{name}")
