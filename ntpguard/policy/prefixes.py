"""Classes and upstreams as one set of prefixes, of which the packet path takes the longest."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from ntpguard import abi
from ntpguard.policy.kinds import Network
from ntpguard.policy.model import Kept, Policy

# a policy with more is written without them: reading them takes longer than a live change may
FEW = 1000
# bits, by IP version: a shorter prefix is much of the internet, or a slip
WIDEST = {4: 8, 6: 16}
UPSTREAM = -1  # before every class's index: of one prefix, this role is looked at first


def digest(prefixes: Iterable[bytes]) -> str:
    """SHA-256 of prefixes, packed, in order_of's order; hexadecimal."""
    return hashlib.sha256(b"".join(prefixes)).hexdigest()


def order_of(prefix: Network) -> tuple[int, int, int]:
    """Sorts prefixes: IPv4 first, by address, a prefix before those it covers."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def light(policy: Policy) -> Policy:
    """The policy with its classes' prefixes counted and digested, if they are more than FEW."""
    if sum(len(one.prefixes) for one in policy.classes) <= FEW:
        return policy
    return replace(
        policy,
        classes=tuple(
            replace(one, prefixes=(), kept=Kept(len(one.prefixes), digest(one.packed)))
            if one.prefixes
            else one
            for one in policy.classes
        ),
    )


def compile_prefixes(policy: Policy) -> tuple[dict[Network, int], int]:
    """Every prefix's packed value (abi.pack_prefix_value), and what POLICY_* flags they make.

    The longest prefix must tell both the class and whether it is an upstream: a prefix that states
    one of them has the other from what covers it.
    """
    roles = [(UPSTREAM, prefix) for prefix in policy.upstreams]
    roles += [(i, prefix) for i, one in enumerate(policy.classes) for prefix in one.prefixes]
    found: dict[Network, int] = {}
    flags = 0
    for version, width, bits, some, long in (
        (4, 32, policy.ipv4_prefix, abi.POLICY_PREFIXES_IPV4, abi.POLICY_LONG_IPV4),
        (6, 128, policy.ipv6_prefix, abi.POLICY_PREFIXES_IPV6, abi.POLICY_LONG_IPV6),
    ):
        # so sorted, a prefix comes after all that cover it
        ordered = sorted(
            (int(prefix.network_address), prefix.prefixlen, role, prefix)
            for role, prefix in roles
            if prefix.version == version
        )
        flags |= some if ordered else 0
        covering = [(1 << width, 0, False)]  # end, class, upstream; the innermost last
        for first, length, role, prefix in ordered:
            while covering[-1][0] <= first:
                covering.pop()
            _, outer, upstream = covering[-1]
            own = outer if role == UPSTREAM else role
            upstream = upstream or role == UPSTREAM
            flags |= long if length > bits and own != outer else 0
            found[prefix] = abi.pack_prefix_value(own, length, upstream)
            covering.append((first + (1 << (width - length)), own, upstream))
    return found, flags
