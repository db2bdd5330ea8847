"""ntp.conf(5): ntpd 4.2.8 and ntpsec. Each directive that concerns clients has its row."""

import ipaddress
from collections.abc import Callable, Iterable
from fractions import Fraction

from ntpguard.migrate.chrony import source
from ntpguard.migrate.draft import (
    EVERYONE,
    KODS,
    NEAR,
    OTHERS,
    Draft,
    Kept,
    Line,
    burst_of,
    rate_of,
)
from ntpguard.policy.kinds import Address, Network, Rate

# no chrony.conf has these
TELLING = {
    "restrict", "discard", "limit", "tos", "tinker", "statsdir", "filegen", "disable", "enable",
    "mru", "leapfile", "interface", "nic", "includefile", "nts", "unrestrict",
}  # fmt: skip
# and no ntp.conf of ntpd's has these
NTPSEC_TELLING = {"limit", "nts", "unrestrict"}
FLAGS = {
    "limited", "kod", "ignore", "noserve", "noquery", "notrust", "nomodify", "notrap", "nopeer",
    "ntpport", "mssntp", "version", "lowpriotrap", "flake", "noepeer", "nomrulist",
}  # fmt: skip
REFUSES = {"ignore", "noserve"}
DAEMONS = {"notrust", "version", "flake"}  # what only a daemon can tell
CARRIED = {"limited", "kod", "noquery"} | REFUSES | DAEMONS
LIMIT = {"average": 1.0, "burst": 20.0, "kod": 0.5}  # ntpsec's


class _Reading:
    """What is known only at the end: who is restricted how, by which numbers."""

    def __init__(self, ntpsec: bool) -> None:
        self.ntpsec = ntpsec
        # ntpsec's defaults hold until `unrestrict default` takes them away
        built_in = {"limited", "noquery"} if ntpsec else set()
        self.restricted: dict[Network, tuple[set[str], Line | None]] = {
            one: (set(built_in), None) for one in EVERYONE
        }
        self.discard: tuple[Kept, Line] | None = None

    def restrict(self, line: Line, draft: Draft) -> None:
        """restrict [-4|-6] default | source | ADDRESS [mask MASK] [flag ...]. A second line of the
        same prefix adds its flags.
        """
        prefixes, flags = _restriction(line, draft)
        if "ntpport" in flags:
            draft.note(
                line,
                "holds for source port 123 only: a class knows no ports. Leave it to the daemon.",
            )
            return
        for prefix in prefixes:
            before, where = self.restricted.get(prefix, (set(), None))
            adds = (flags - before) & CARRIED
            self.restricted[prefix] = before | flags, line if adds or not where else where

    def unrestrict(self, line: Line, draft: Draft) -> None:
        """ntpsec's: takes flags away; the whole restriction, if it names none."""
        prefixes, flags = _restriction(line, draft)
        for prefix in prefixes:
            if flags and prefix in self.restricted:
                self.restricted[prefix] = self.restricted[prefix][0] - flags, line
            elif not flags and prefix not in EVERYONE:
                self.restricted.pop(prefix, None)

    def discards(self, line: Line, draft: Draft) -> None:
        """discard [average N] [minimum N] [monitor N]: a counter that an answered request raises by
        2^average - 2 and a second lowers by one; 8 * 2^average and more is refused.
        """
        found = _numbers(line, {"average": 3.0, "minimum": 2.0, "monitor": 3000.0}, draft)
        if found is None:
            return
        self.discard = _discard(int(found["average"])), line
        if "minimum" in line.arguments:
            draft.note(
                line,
                "minimum: ntpguard has no least time between two requests, but burst and rate.",
            )

    def limits(self, line: Line, draft: Draft) -> None:
        """ntpsec's limit [average N] [burst N] [kod N]: a rate a second and a burst."""
        found = _numbers(line, LIMIT, draft)
        if found is None:
            return
        if found["average"] <= 0:
            draft.note(line, "average must be more than 0.")
            return
        rate = rate_of(Fraction(found["average"]).limit_denominator(86400) or Fraction(1, 86400))
        burst = burst_of(int(min(found["burst"], 10**6)), rate)
        self.discard = Kept(rate, burst), line
        if float(rate.per_second) != found["average"] or burst != found["burst"]:
            draft.note(line, NEAR.format(rate, burst))
        if "kod" in line.arguments:
            draft.note(line, KODS)

    def carry(self, draft: Draft) -> None:
        """Writes what the restrictions come to."""
        (flags, line), (flags6, line6) = (self.restricted.pop(one) for one in EVERYONE)
        for one, where in ((flags, line), (flags6, line6)):
            _note_default(one, where, draft)
        kept, where = self.discard or (
            Kept(Rate(1, "second"), 20) if self.ntpsec else _discard(3),
            line,
        )
        if _is_limited(flags):
            draft.limit = Kept(kept.rate, kept.burst, kod="kod" in flags), where
        else:
            draft.class_limit = kept
        # as [limit] and [kod] have it then
        kod = "kod" in flags or not draft.limit
        if _is_limited(flags6) and (not draft.limit or ("kod" in flags6) != kod):
            where6 = line6 or line
            assert where6  # else both have what is built in
            draft.classify(EVERYONE[1], where6, "limit", kod=_own("kod" in flags6, kod))
        for prefix, (own, where) in self.restricted.items():
            if where and not prefix.is_loopback:
                self._carry(prefix, own, where, kod, draft)
        limited = draft.limit or any(action == "limit" for action, _, _ in draft.classes)
        if self.discard and not limited:
            draft.note(self.discard[1], "without restrict ... limited it is without effect.")

    def _carry(self, prefix: Network, own: set[str], line: Line, kod: bool, draft: Draft) -> None:
        control = "noquery" not in own
        if own & REFUSES:
            draft.classify(prefix, line, "block")
            if control and "ignore" not in own:
                draft.note(line, "it answers modes 6 and 7 still; the block drops them too.")
            return
        for flag in sorted(own & DAEMONS):
            draft.note(line, f"{flag}: who is refused by that is refused by the daemon. Leave it.")
        if "limited" in own:
            draft.classify(prefix, line, "limit", kod=_own("kod" in own, kod), control=control)
        else:
            draft.classify(prefix, line, "exempt", control=control)


def _is_limited(flags: set[str]) -> bool:
    return "limited" in flags and not flags & REFUSES


def _own(kod: bool, default: bool) -> bool | None:
    return None if kod == default else kod


def _note_default(flags: set[str], line: Line | None, draft: Draft) -> None:
    """What of `restrict default` is not carried over."""
    if line is None:
        return
    if flags & REFUSES:
        draft.note(line, OTHERS.format("serves"))
    elif "limited" not in flags:
        draft.note(line, "without limited it limits nobody; ntpguard's own default limit holds.")
    for flag in sorted(flags & DAEMONS):
        draft.note(line, f"{flag}: who is refused by that is refused by the daemon. Leave it.")
    if not flags & {"noquery", "ignore"}:
        draft.note(
            line,
            "without noquery it answers modes 6 and 7 to everybody, which is an amplifier: "
            "ntpguard drops them, but for classes with control = true.",
        )


def _restriction(line: Line, draft: Draft) -> tuple[list[Network], set[str]]:
    """Whom a restriction names, nobody if that cannot be told, and its flags."""
    words = [one.lower() for one in line.arguments if one not in ("-4", "-6")]
    if not words:
        return [], set()
    who, rest = words[0], words[1:]
    if who == "source":
        draft.note(line, "of the servers this host asks: put their addresses into upstreams.")
        return [], set()
    mask = ""
    if "mask" in rest[:-1]:
        at = rest.index("mask")
        mask, rest = rest[at + 1], rest[:at] + rest[at + 2 :]
    flags = set(rest)
    unknown = flags - FLAGS
    if unknown:
        draft.note(line, f"{', '.join(sorted(unknown))}: not known: look what it is for.")
    if who == "default":
        only = {"-4", "-6"} & set(line.arguments)
        return [one for one in EVERYONE if only in (set(), {f"-{one.version}"})], flags
    address, _, bits = who.partition("/")
    try:
        if mask or not bits:
            bits = str(_bits(mask)) if mask else ""
        elif not bits.isdecimal():
            raise ValueError(bits)
        return [ipaddress.ip_network(f"{address}/{bits}" if bits else who, strict=False)], flags
    except ValueError:
        why = "no prefix: names are not resolved. Write addresses into a class, if it matters."
        draft.note(line, why)
        return [], set()


def _discard(average: int) -> Kept:
    """What ntpd's counter comes to."""
    headway = 2 ** min(max(average, 0), 17)
    if headway <= 2:  # it never fills; what is left is a second between requests
        return Kept(Rate(1, "second"), 8)
    rate = rate_of(Fraction(1, headway - 2))
    return Kept(rate, burst_of((7 * headway - 1) // (headway - 2) + 1, rate))


def _bits(mask: str) -> int:
    """The length of a mask of either version. Raises ValueError."""
    address = ipaddress.ip_address(mask)
    bits = int(address).bit_count()
    if int(address) != ((1 << bits) - 1) << (address.max_prefixlen - bits):
        raise ValueError(mask)
    return bits


def _numbers(line: Line, defaults: dict[str, float], draft: Draft) -> dict[str, float] | None:
    """A directive's options, pairs of a name and a number; None, and a note, if they are not."""
    found = dict(defaults)
    words = [one.lower() for one in line.arguments]
    for name, value in zip(words[::2], [*words[1::2], ""], strict=False):
        try:
            if name not in found:
                raise ValueError(name)
            found[name] = float(value)
            if not abs(found[name]) < 1e9:
                raise ValueError(value)
        except ValueError:
            draft.note(line, f"{name} {value}: not understood: the daemon would complain of it.")
            return None
    return found


def _mru(line: Line, draft: Draft) -> None:
    words = [one.lower() for one in line.arguments]
    sizes = {"maxdepth": 1.0, "maxmem": 1024 / 72}  # entries; kilobytes of entries of 72 bytes
    for name, value in zip(words[::2], words[1::2], strict=False):
        if name in sizes and value.isdecimal():
            draft.hold(int(int(value[:12]) * sizes[name]), line)


class _Interfaces:
    """interface listen|ignore|drop: where there is any, what none of them names is not served."""

    def __init__(self) -> None:
        self.listens: dict[str, Line] = {}

    def add(self, line: Line, draft: Draft) -> None:
        """The last line that matches an address decides."""
        action, what = [*(one.lower() for one in line.arguments[:1]), *line.arguments[1:2], "", ""][
            :2
        ]
        if action == "listen" and what and what != "wildcard":
            self.listens[what] = line
        else:
            self.listens.pop(what, None)
            draft.note(
                line,
                "ntpguard guards what is in interfaces and destinations: leave out the others.",
            )

    def carry(self, draft: Draft) -> None:
        """Only one kind can be said in a policy: all addresses, or all names."""
        addresses: dict[Address, Line] = {}
        names: dict[str, Line] = {}
        for what, line in self.listens.items():
            try:
                addresses[ipaddress.ip_address(what)] = line
            except ValueError:
                names[what] = line
        wide = [one for one in names if one in ("all", "ipv4", "ipv6") or "/" in one]
        if wide or (addresses and names):
            for line in self.listens.values():
                draft.note(line, "left open, so that nothing it serves goes unguarded.")
            return
        draft.interfaces |= names
        draft.destinations |= {one: line for one, line in addresses.items() if not one.is_loopback}


def _disable(line: Line, draft: Draft) -> None:
    if "monitor" in line.arguments:
        draft.note(line, "limited is without effect in ntpd then; ntpguard keeps its own table.")


def read(lines: Iterable[Line], draft: Draft) -> None:
    """Carries over what there is. What has nothing to do with clients is passed over."""
    lines = list(lines)
    ntpsec = draft.daemon == "ntpsec" or any(
        line.directive in NTPSEC_TELLING or "ntpsec" in " ".join(line.arguments) for line in lines
    )
    if ntpsec:
        draft.daemon = "ntpsec"
    reading, interfaces = _Reading(ntpsec), _Interfaces()
    directives: dict[str, Callable[[Line, Draft], None]] = {
        "restrict": reading.restrict,
        "unrestrict": reading.unrestrict,
        "discard": reading.discards,
        "limit": reading.limits,
        "mru": _mru,
        "interface": interfaces.add,
        "nic": interfaces.add,
        "server": source,
        "pool": source,
        "peer": source,
        "disable": _disable,
        "includefile": lambda line, draft: draft.note(
            line, "is not followed: name that file on the command line as well, after this one."
        ),
    }
    for line in lines:
        if line.directive in directives:
            directives[line.directive](line, draft)
    reading.carry(draft)
    interfaces.carry(draft)
