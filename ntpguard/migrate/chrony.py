"""chrony.conf(5): chrony 4.8. Each directive that concerns clients has its row."""

import ipaddress
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from fractions import Fraction

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
from ntpguard.policy.kinds import Address, Network

# no other daemon's configuration has these
TELLING = {
    "allow", "deny", "cmdallow", "ratelimit", "makestep", "rtcsync", "keyfile", "sourcedir",
    "confdir", "bindaddress", "local", "hwtimestamp", "ntsdumpdir", "clientloglimit", "leapsectz",
}  # fmt: skip
# directive: (least, most, default) of its options; chrony.conf(5), "ratelimit"
RATELIMIT = {"interval": (-19, 12, 3), "burst": (1, 255, 8), "leak": (1, 4, 2), "kod": (0, 4, 0)}


class _Access:
    """allow and deny: the longest prefix's rule holds. A rule forgets those before it that are
    below it: with `all` every one, else those on its own level of chronyd's tree, of four bits.
    """

    def __init__(self) -> None:
        self.rules: dict[Network, tuple[bool, Line]] = {}
        self._sorted: list[tuple[int, int, int, Network]] = []  # what a prefix covers is a slice

    def add(self, line: Line, draft: Draft) -> None:
        """Reads `allow [all] [subnet]`."""
        words = list(line.arguments)
        whole = bool(words) and words[0].lower() == "all"
        words = words[1:] if whole else words
        try:
            prefixes = [_prefix(words[0])] if words else [*EVERYONE]
        except ValueError:
            draft.note(line, "a name is not resolved: write its address, or leave it to chronyd.")
            return
        for prefix in prefixes:
            self._forget(prefix, whole)
            self.rules[prefix] = (line.directive == "allow", line)
            insort(self._sorted, _order(prefix))

    def _forget(self, prefix: Network, whole: bool) -> None:
        first = bisect_left(self._sorted, _order(prefix))
        end = (prefix.version, int(prefix.broadcast_address) + 1)
        last = bisect_left(self._sorted, end)
        kept = []
        for place in self._sorted[first:last]:
            if whole or _level(place[-1]) == _level(prefix):
                del self.rules[place[-1]]
            else:
                kept.append(place)
        self._sorted[first:last] = kept

    def carry(self, draft: Draft) -> None:
        """Blocks what is denied, and limits what is allowed within that."""
        lengths = {prefix.prefixlen for prefix in self.rules}
        for prefix, (allowed, line) in sorted(self.rules.items(), key=lambda one: one[0].prefixlen):
            covering = (
                prefix.supernet(new_prefix=one) for one in lengths if one < prefix.prefixlen
            )
            above = [self.rules[one][0] for one in covering if one in self.rules]
            if not allowed and prefix.prefixlen:
                draft.classify(prefix, line, "block")
            elif allowed and False in above:
                draft.classify(prefix, line, "limit")
        everyone = [rule for one, (rule, _) in self.rules.items() if not one.prefixlen]
        if True not in [allowed for allowed, _ in self.rules.values()]:
            draft.remarks.append("No line here allows clients: chronyd serves nobody by this file.")
        some = next((line for allowed, line in self.rules.values() if allowed), None)
        if some and True not in everyone:
            draft.note(
                some,
                OTHERS.format("allows"),
            )


def _prefix(text: str) -> Network:
    """chronyd takes 1.2 for 1.2.0.0/16. Raises ValueError."""
    address, slash, bits = text.partition("/")
    if slash and not bits.isdecimal():
        raise ValueError(text)
    parts = address.split(".")
    if ":" not in address and len(parts) < 4 and all(one.isdigit() for one in parts):
        address = ".".join(parts + ["0"] * (4 - len(parts)))
        bits = bits if slash else str(8 * len(parts))
    return ipaddress.ip_network(f"{address}/{bits}" if bits else address, strict=False)


def _level(prefix: Network) -> int:
    return math.ceil(prefix.prefixlen / 4)


def _order(prefix: Network) -> tuple[int, int, int, Network]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen, prefix


def _ratelimit(line: Line, draft: Draft) -> None:
    found = {name: default for name, (_, _, default) in RATELIMIT.items()}
    words = [one.lower() for one in line.arguments]
    for name, value in zip(words[::2], [*words[1::2], ""], strict=False):
        try:
            least, most, _ = RATELIMIT[name]
            found[name] = min(max(int(value), least), most)
        except (KeyError, ValueError):
            draft.note(line, f"{name} {value}: not understood: chronyd would not start with it.")
            return
    wanted = Fraction(2) ** -found["interval"]
    rate = rate_of(wanted)
    burst = burst_of(found["burst"], rate)
    draft.limit = (Kept(rate, burst, Fraction(1, 2 ** found["leak"]), found["kod"] > 0), line)
    if found["kod"]:
        draft.note(line, KODS)
    if rate.per_second != wanted or burst != found["burst"]:
        draft.note(line, NEAR.format(rate, burst))


def _port(line: Line, draft: Draft) -> None:
    port = _whole(line)
    if port == 0:
        draft.note(line, "chronyd serves nobody then: there is nothing to guard.")
    elif port is None or not 0 < port < 65536:
        draft.note(line, "no port: chronyd would not start with it.")
    else:
        draft.ports = {port: line}


class _Bound:
    """bindaddress: one of each family, the last one; a family without is bound to all addresses."""

    def __init__(self) -> None:
        self.addresses: dict[int, tuple[Address, Line]] = {}

    def add(self, line: Line, draft: Draft) -> None:
        """Reads `bindaddress ADDRESS`."""
        try:
            address = ipaddress.ip_address(line.arguments[0] if line.arguments else "")
        except ValueError:
            draft.note(line, "no address: destinations are left open.")
            return
        self.addresses[address.version] = address, line

    def carry(self, draft: Draft) -> None:
        """Destinations are both families': one family alone would leave the other unguarded."""
        named = [(one, line) for one, line in self.addresses.values() if not one.is_unspecified]
        if len(named) < len(EVERYONE):
            for one, line in named:
                if not one.is_loopback:
                    other = 10 - one.version
                    why = f"destinations are left open: IPv{other} is served on all addresses."
                    draft.note(line, why)
            return
        draft.destinations = {one: line for one, line in named if not one.is_loopback}


def source(line: Line, draft: Draft) -> None:
    """A server that this host asks: its answers pass unlimited, if its address is known."""
    words = [one for one in line.arguments if one not in ("-4", "-6")]
    try:
        address = ipaddress.ip_network(words[0] if words else "")
        if not address.is_loopback:  # ntpd's 127.127.x.y are clocks
            draft.upstreams[address] = line
    except ValueError:
        draft.note(
            line,
            "a name is not resolved. Answers from servers that are not in upstreams share the rate "
            "of [answers], 1000/second for each CPU: enough, unless somebody floods this host.",
        )


def _whole(line: Line) -> int | None:
    try:
        return int(line.arguments[0])
    except (IndexError, ValueError):
        return None


def _noted(why: str) -> Callable[[Line, Draft], None]:
    return lambda line, draft: draft.note(line, why)


def _interface(line: Line, draft: Draft) -> None:
    if line.arguments:
        draft.interfaces[line.arguments[0]] = line


def _table(line: Line, draft: Draft) -> None:
    size = min(max(_whole(line) or 0, 64), 1 << 31)
    # 128 bytes each in chronyd, with its timestamps; a power of two of them
    draft.hold(1 << math.ceil(math.log2(size / 128)) if size > 128 else 1, line)


_FILES = "is not followed: name those files on the command line as well, after this one."
DIRECTIVES: dict[str, Callable[[Line, Draft], None]] = {
    "ratelimit": _ratelimit,
    "port": _port,
    "binddevice": _interface,
    "server": source,
    "pool": source,
    "peer": source,
    "clientloglimit": _table,
    "noclientlog": _noted(
        "ratelimit is without effect in chronyd then; ntpguard keeps its own table."
    ),
    "ntsratelimit": _noted(
        "NTS key establishment is TCP port 4460: ntpguard passes it. Keep this line."
    ),
    "cmdratelimit": _noted("chronyc's port is not NTP: ntpguard passes it. Keep this line."),
    "cmdallow": _noted("chronyc's port is not NTP: ntpguard passes it. Keep this line."),
    "cmddeny": _noted("chronyc's port is not NTP: ntpguard passes it. Keep this line."),
    "opencommands": _noted("chronyc's port is not NTP: ntpguard passes it. Keep this line."),
    "maxntsconnections": _noted(
        "NTS key establishment is TCP port 4460: ntpguard passes it. Keep this line."
    ),
    "ptpport": _noted("NTP over PTP is not guarded."),
    "include": _noted(_FILES),
    "confdir": _noted(_FILES),
    "sourcedir": _noted(_FILES),
}


def read(lines: Iterable[Line], draft: Draft) -> None:
    """Carries over what there is. What has nothing to do with clients is passed over."""
    access, bound = _Access(), _Bound()
    for line in lines:
        if line.directive in ("allow", "deny"):
            access.add(line, draft)
        elif line.directive == "bindaddress":
            bound.add(line, draft)
        elif line.directive in DIRECTIVES:
            DIRECTIVES[line.directive](line, draft)
    access.carry(draft)
    bound.carry(draft)
    if not draft.limit:
        draft.remarks.append("chronyd limits nobody by this file; ntpguard's default limit holds.")
