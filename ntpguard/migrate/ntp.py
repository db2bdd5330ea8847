"""ntp.conf(5): ntpd 4.2.8 and ntpsec. Each directive that concerns clients has its row."""

import ipaddress
from collections.abc import Callable, Iterable
from fractions import Fraction

from ntpguard.migrate.chrony import source
from ntpguard.migrate.draft import OTHERS, Draft, Kept, Line, burst_of, rate_of
from ntpguard.policy.kinds import Network, Rate
from ntpguard.policy.settings import CAPACITY

# no chrony.conf has these
TELLING = {
    "restrict", "discard", "limit", "tos", "tinker", "statsdir", "filegen", "disable", "enable",
    "mru", "leapfile", "interface", "nic", "includefile", "nts",
}  # fmt: skip
# and no ntp.conf of ntpd's has these
NTPSEC_TELLING = {"limit", "nts"}
FLAGS = {
    "limited", "kod", "ignore", "noserve", "noquery", "notrust", "nomodify", "notrap", "nopeer",
    "ntpport", "mssntp", "version", "lowpriotrap", "flake", "noepeer",
}  # fmt: skip
LIMIT = {"average": 1.0, "burst": 20.0, "kod": 0.5}  # ntpsec's


class _Reading:
    """What is known only at the end: whether default is limited, by which numbers."""

    def __init__(self, ntpsec: bool) -> None:
        self.ntpsec = ntpsec
        self.default: tuple[set[str], Line] | None = None
        self.restricted: list[tuple[Network, set[str], Line]] = []
        self.discard: tuple[Kept, Line] | None = None

    def restrict(self, line: Line, draft: Draft) -> None:
        """restrict [-4|-6] default | source | ADDRESS [mask MASK] [flag ...]."""
        words = [one.lower() for one in line.arguments if one not in ("-4", "-6")]
        if not words:
            return
        who, rest = words[0], words[1:]
        if who == "source":
            draft.note(line, "of the servers this host asks: put their addresses into upstreams.")
            return
        mask = ""
        if "mask" in rest[:-1]:
            at = rest.index("mask")
            mask, rest = rest[at + 1], rest[:at] + rest[at + 2 :]
        flags = set(rest)
        unknown = flags - FLAGS
        if unknown:
            draft.note(line, f"{', '.join(sorted(unknown))}: not known: look what it is for.")
        if who == "default":
            self.default = flags, line
            return
        try:
            prefix = ipaddress.ip_network(f"{who}/{_bits(mask)}" if mask else who, strict=False)
        except ValueError:
            draft.note(
                line, "a name is not resolved: write its address into a class, if it matters."
            )
            return
        if not prefix.prefixlen:
            self.default = flags, line
        elif not prefix.is_loopback:
            self.restricted.append((prefix, flags, line))

    def discards(self, line: Line, draft: Draft) -> None:
        """discard [average N] [minimum N] [monitor N]: a counter that an answered request raises by
        2^average - 2 and a second lowers by one; 8 * 2^average and more is refused.
        """
        found = _numbers(line, {"average": 3.0, "minimum": 2.0, "monitor": 3000.0}, draft)
        if found is None:
            return
        self.discard = _discard(int(found["average"])), line

    def limits(self, line: Line, draft: Draft) -> None:
        """ntpsec's limit [average N] [burst N] [kod N]: a rate a second and a burst."""
        found = _numbers(line, LIMIT, draft)
        if found is None:
            return
        if found["average"] <= 0:
            draft.note(line, "average must be more than 0.")
            return
        rate = rate_of(Fraction(found["average"]).limit_denominator(86400) or Fraction(1, 86400))
        self.discard = Kept(rate, burst_of(int(min(found["burst"], 10**6)), rate)), line

    def carry(self, draft: Draft) -> None:
        """Writes what the restrictions come to."""
        # without a line of its own, ntpsec's is `noquery limited`
        built_in = {"limited", "noquery"} if self.ntpsec else set()
        flags, line = self.default or (built_in, None)
        kod = "kod" in flags
        if line is not None and flags & {"ignore", "noserve"}:
            draft.note(
                line,
                OTHERS.format("serves"),
            )
        if "limited" in flags:
            built_in_limit = Kept(Rate(1, "second"), 20) if self.ntpsec else _discard(3)
            kept, where = self.discard or (built_in_limit, line)
            draft.limit = Kept(kept.rate, kept.burst, kod=kod), where
        else:
            if line is not None:
                draft.note(
                    line, "without limited it limits nobody; ntpguard's own default limit holds."
                )
            if self.discard:
                draft.note(
                    self.discard[1], "without restrict default limited it is without effect."
                )
        if "noquery" not in flags and line is not None:
            draft.note(
                line,
                "without noquery it answers modes 6 and 7 to everybody, which is an amplifier: "
                "ntpguard drops them, but for classes with control = true.",
            )
        for prefix, own, where in self.restricted:
            control = "noquery" not in own
            if own & {"ignore", "noserve"}:
                draft.classify(prefix, where, "block")
            elif "limited" in own:
                own_kod = None if ("kod" in own) == kod else "kod" in own
                draft.classify(prefix, where, "limit", kod=own_kod, control=control)
            else:
                draft.classify(prefix, where, "exempt", control=control)


def _discard(average: int) -> Kept:
    """What ntpd's counter comes to."""
    headway = 2 ** min(max(average, 0), 17)
    if headway <= 2:  # it never fills; what is left is a second between requests
        return Kept(Rate(1, "second"), 8)
    rate = rate_of(Fraction(1, headway - 2))
    return Kept(rate, burst_of((7 * headway - 1) // (headway - 2) + 1, rate))


def _bits(mask: str) -> int:
    """The length of a mask of either version. Raises ValueError."""
    if ":" not in mask:
        return ipaddress.ip_network(f"0.0.0.0/{mask}").prefixlen
    value = int(ipaddress.IPv6Address(mask))
    bits = value.bit_count()
    if value != ((1 << bits) - 1) << (128 - bits):
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
    for name, value in zip(words[::2], words[1::2], strict=False):
        if name == "maxdepth" and value.isdigit():
            draft.capacity = min(max(int(value), CAPACITY.least), CAPACITY.most), line
            return
    draft.note(line, "ntpguard's table holds 1,048,576 sources (capacity in [sources]).")


def _interface(line: Line, draft: Draft) -> None:
    words = line.arguments
    if words[:1] == ("listen",) and len(words) > 1:
        try:
            address = ipaddress.ip_address(words[1])
        except ValueError:
            if words[1] not in ("all", "ipv4", "ipv6", "wildcard") and "/" not in words[1]:
                draft.interfaces[words[1]] = line
            return
        if not address.is_loopback:
            draft.destinations[address] = line
        return
    draft.note(
        line, "ntpguard guards what is in interfaces and destinations: leave out the others."
    )


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
    reading = _Reading(ntpsec)
    directives: dict[str, Callable[[Line, Draft], None]] = {
        "restrict": reading.restrict,
        "discard": reading.discards,
        "limit": reading.limits,
        "mru": _mru,
        "interface": _interface,
        "nic": _interface,
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
