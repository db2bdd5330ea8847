"""The access policy in plain words, to publish on the server's web page."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from ntpguard.policy.kinds import Network, Rate
from ntpguard.policy.model import ClassPolicy, Policy

LISTED = 8  # of more prefixes, the number is told
POLL_SECONDS = 64  # what clients ask for at most when they keep time: RFC 5905, minpoll 6
IBURST = (8, 2)  # requests, and seconds between two: ntpd's and chrony's start
VENDORS = "https://www.ntppool.org/vendors.html"


@dataclass(frozen=True)
class Section:
    """A heading and what is said under it."""

    heading: str
    items: list[str]


def describe(policy: Policy, contact: str | None = None) -> list[Section]:
    """What this policy means to those who ask the server. `contact`: whom to ask about it."""
    default, *classes = policy.classes
    sections = [
        Section("What a client may ask", [*_state(policy), *_limit(policy, default)]),
        Section("Other limits", [text for one in classes for text in _class(one, default)]),
        Section("What happens to requests over the limit", _excess(policy, default)),
        Section("If you run clients", _advice(default)),
        Section(
            "If you make devices or software",
            [
                "Do not build this server's name or address into a product: ask the NTP pool for "
                f"a vendor zone, {VENDORS}.",
                "Let each device ask at a time of its own, not at the full hour or minute.",
            ],
        ),
        Section("Contact", [contact] if contact else []),
    ]
    return [one for one in sections if one.items]


def render(sections: list[Section], *, markdown: bool = False) -> list[str]:
    """The lines of the text, or of Markdown."""
    title = "Access policy of this NTP server"
    lines = [f"# {title}" if markdown else title.upper()]
    for one in sections:
        lines += ["", f"## {one.heading}" if markdown else one.heading, ""]
        lines += [f"- {item}" for item in one.items]
    return lines


def rate_in_words(rate: Rate) -> str:
    """60/minute: "60 requests a minute"."""
    article = "an" if rate.unit == "hour" else "a"
    return f"{_requests(rate.count)} {article} {rate.unit}"


def _time(seconds: int) -> str:
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds % size == 0:
            return f"{seconds // size} {unit}" + "s" * (seconds != size)
    return f"{seconds} second" + "s" * (seconds != 1)


def _requests(count: int) -> str:
    return f"{count} request" + "s" * (count != 1)


def _state(policy: Policy) -> list[str]:
    if policy.mode == "enforce":
        return []
    return [
        "At present nothing of this is enforced: every request is let through"
        + (", and it is counted what would happen." if policy.mode == "observe" else ".")
    ]


def _limit(policy: Policy, default: ClassPolicy) -> list[str]:
    ports = ", ".join(map(str, policy.ports))
    v4 = "one IPv4 address" if policy.ipv4_prefix == 32 else f"one IPv4 /{policy.ipv4_prefix}"
    items = [
        f"Each source: {_words(default)} (UDP port {ports}).",
        f"A source is {v4} or one IPv6 /{policy.ipv6_prefix} network: all hosts in it, and all "
        "behind one NAT address, count together.",
        "Who has not asked for a while may ask so many at once again.",
    ]
    if 0 < len(policy.destinations) <= LISTED:
        items.append(f"This holds for the server's addresses {_list(policy.destinations)}.")
    if policy.ceiling_rate:
        items.append(
            f"All sources together: {rate_in_words(policy.ceiling_rate)}; those that have asked "
            "regularly come first."
        )
    if not default.control:
        items.append("Queries of NTP modes 6 and 7 (ntpq, ntpdc) are not answered.")
    return items


def _words(one: ClassPolicy) -> str:
    return f"{rate_in_words(one.rate)} on average, up to {one.burst} at once"


def _class(one: ClassPolicy, default: ClassPolicy) -> list[str]:
    what = {
        "exempt": "no limit",
        "block": "not served: every request is dropped",
        "limit": _words(one),
    }[one.action]
    if one.action == "limit":
        if one.leak != default.leak:
            what += f"; of those over the limit, {_share(one.leak)} answered anyway"
        if one.kod != default.kod:
            what += "; told by a Kiss-o'-Death packet" if one.kod else "; without Kiss-o'-Death"
    if one.control and not default.control:
        what += "; may send queries of modes 6 and 7"
    if one.mode == "observe":
        what += " (counted only at present, not enforced)"
    return [f"{one.name} ({_prefixes(one.prefixes, one.prefix_count)}): {what}."]


def _prefixes(prefixes: tuple[Network, ...], count: int) -> str:
    if count > LISTED or len(prefixes) < count:
        return f"{count} networks"
    return _list(prefixes) or "no network"


def _list(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _share(share: Fraction) -> str:
    if share == 1:
        return "all are"
    verb = "is" if share.numerator == 1 else "are"
    return f"about {share.numerator} in {share.denominator} {verb}"


def _excess(policy: Policy, default: ClassPolicy) -> list[str]:
    items = [
        f"Of the requests over the limit, {_share(default.leak)} answered anyway (in all, no more "
        f"than {rate_in_words(policy.leak_max)}), so that nobody can silence a client by sending "
        "requests in its name."
    ]
    if default.kod:
        items.append(
            "Some of the others get a Kiss-o'-Death packet with the code RATE (RFC 5905, 7.4): "
            f"slow down. A source gets at most one in {_time(policy.kod_interval)}, and none any "
            f"more after {policy.kod_patience} that it did not heed, until it has kept the "
            "limit for a quarter of an hour."
        )
    items.append("The rest is dropped without an answer.")
    items.append("A client that slows down is served again at once; there is no penalty time.")
    shapes = [one for one in policy.signatures if one.mode == "enforce"]
    for when, text in (
        ("excess", "when they are over the limit"),
        ("always", "always"),
    ):
        names = ", ".join(one.name for one in shapes if one.when == when)
        if names:
            items.append(
                f"Requests of the shape of known faulty clients are dropped {text}: {names}."
            )
    return items


def _advice(default: ClassPolicy) -> list[str]:
    """What a client does well to do, within the limit."""
    seconds = POLL_SECONDS
    while seconds * default.rate.per_second < 1:
        seconds *= 2
    items = [f"Ask every {seconds} seconds, or less often, once your clock is right."]
    count, apart = IBURST
    if count - (count - 1) * apart * default.rate.per_second <= default.burst:
        items.append(f"{count} requests {apart} seconds apart at the start (iburst) are fine.")
    items.append("Never use burst, and no fixed interval of a few seconds.")
    items.append("When a Kiss-o'-Death packet with the code RATE comes, ask less often.")
    return items
