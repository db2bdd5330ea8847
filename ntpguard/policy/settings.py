"""Every setting of the policy file, one row each: checking, showing and reference read it here."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ntpguard.policy.header import HeaderKind
from ntpguard.policy.kinds import (
    AddressKind,
    Boolean,
    Choice,
    Integer,
    Interval,
    Kind,
    ListKind,
    PrefixKind,
    Rate,
    RateKind,
    Share,
    Text,
)

# the coarse clock has 4 to 10 ms steps, and a source's limit must be told apart from them
SOURCE_RATE = RateKind(10_000)
TOTAL_RATE = RateKind(10_000_000)
TOTAL_RATE_OR_OFF = RateKind(10_000_000, off=True)
BURST = Integer(1, 1_000_000)
CAPACITY = Integer(1024, 16_777_216)
NAME = Text("1 to 32 of a-z, 0-9, - and _, the first a letter or digit", "[a-z0-9][a-z0-9_-]{0,31}")
PREFIXES = ListKind(PrefixKind(), "prefixes")
REQUIRED = object()


@dataclass(frozen=True)
class Setting:
    """One setting; `name` is unique within its section ("" is the file's top level).

    A class's default None: what [limit] and [kod] say; a signature's: not compared.
    """

    section: str
    name: str
    kind: Kind
    default: Any
    meaning: str

    @property
    def path(self) -> tuple[str, ...]:
        """Its key's parts: ("limit", "rate")."""
        return (self.section, self.name) if self.section else (self.name,)

    @property
    def key(self) -> str:
        """As messages name it: "limit.rate"."""
        return ".".join(self.path)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "",
        "interfaces",
        ListKind(Text("an interface's name"), "interfaces"),
        (),
        "interfaces to guard; or on the command line",
    ),
    Setting(
        "",
        "mode",
        Choice(("enforce", "observe", "off")),
        "observe",
        "observe counts what would happen and passes every packet",
    ),
    Setting("", "ports", ListKind(Integer(1, 65535), "ports", 1, 4), (123,), "UDP ports guarded"),
    Setting(
        "",
        "destinations",
        # the packet path's map has room for 1024: two policies' of these and the host's own
        ListKind(AddressKind(), "addresses", most=256),
        (),
        "addresses guarded; none: any",
    ),
    Setting(
        "",
        "upstreams",
        PREFIXES,
        (),
        "servers of this host's own client: their answers (modes 2, 4, 5) pass unlimited, unless a "
        "class blocks them",
    ),
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
        CAPACITY,
        1_048_576,
        "sources held, 64 bytes each; 1 % of so many find no slot",
    ),
    Setting("sources", "ipv4_prefix", Integer(8, 32), 32, "bits of an IPv4 address in a source"),
    Setting("sources", "ipv6_prefix", Integer(16, 64), 64, "bits of an IPv6 address in a source"),
    Setting("limit", "rate", SOURCE_RATE, Rate(60, "minute"), "requests a source may send"),
    Setting("limit", "burst", BURST, 32, "requests it may send at once after a pause"),
    Setting("limit", "leak", Share(), Fraction(1, 4), "share of excess answered anyway"),
    Setting(
        "limit", "leak_max", TOTAL_RATE, Rate(16_000, "second"), "excess answered, all sources"
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
    Setting(
        "newcomers",
        "established_after",
        # three spacings of at most 1023 mark units, 54 minutes
        Interval(3, 2700),
        300,
        "time over which 4 well-spaced requests make a source established",
    ),
    Setting(
        "ceiling",
        "rate",
        TOTAL_RATE_OR_OFF,
        None,
        "requests passed to the daemon, all sources together; established ones come first",
    ),
    Setting(
        "answers",
        "rate",
        TOTAL_RATE_OR_OFF,
        Rate(1000, "second"),
        "answers (modes 2, 4, 5) from no upstream, on each CPU; off: unlimited",
    ),
    Setting(
        "odd",
        "rate",
        TOTAL_RATE_OR_OFF,
        Rate(1000, "second"),
        "fragments and chains of headers too long to follow, on each CPU; off: unlimited",
    ),
)

CLASS_SETTINGS: tuple[Setting, ...] = (
    Setting("class", "name", NAME, REQUIRED, "how commands and metrics name the class"),
    Setting("class", "prefixes", PREFIXES, (), "its sources"),
    Setting(
        "class",
        "prefixes_file",
        Text("a file name", "[^\0]+"),
        None,
        "more of them, one a line, # begins a comment; relative to the policy file",
    ),
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

SIGNATURE_SETTINGS: tuple[Setting, ...] = (
    Setting("signature", "name", NAME, REQUIRED, "how commands and metrics name the signature"),
    Setting("signature", "header", HeaderKind(), None, "what the NTP header begins with"),
    Setting("signature", "source_port", Integer(1, 65535), None, "UDP port it is sent from"),
    Setting(
        "signature",
        "fraction",
        Choice(("microseconds", "nanoseconds")),
        None,
        "how the transmit timestamp's fraction is made: from truncated microseconds (FortiGate), "
        "or nanoseconds that were not scaled (systemd-timesyncd)",
    ),
    Setting(
        "signature",
        "when",
        Choice(("excess", "always")),
        "excess",
        "excess: tested on requests over their source's limit; always: on every request",
    ),
    Setting("signature", "action", Choice(("block",)), "block", "what it does with them"),
    Setting(
        "signature",
        "mode",
        Choice(("enforce", "observe")),
        "enforce",
        "observe: matches are counted, nothing is decided",
    ),
)
