"""Interfaces and addresses that come, go and change."""

import contextlib
import errno
import socket
from collections.abc import Collection, Iterator, Mapping

from ntpguard.kernel.interfaces import Interface
from ntpguard.policy.kinds import Address

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
LARGEST_BYTES = 1 << 16
SHOWN = 8

Links = Mapping[int, Interface]


def events() -> socket.socket:
    """A socket on which netlink tells that a link or an address has changed.

    What has changed is read afresh, by pyroute2: a message that is lost, or overtaken by the next,
    does no harm.
    """
    one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    one.setblocking(False)
    one.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
    return one


def drain(one: socket.socket) -> None:
    """Reads all that is there."""
    with contextlib.suppress(BlockingIOError):
        while True:
            try:
                one.recv(LARGEST_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost
                    raise


def changes(
    before: Links, now: Links, watched: Collection[str], guarded: Collection[int]
) -> Iterator[str]:
    """What happened to interfaces that the policy names (`watched`) or that are `guarded`."""
    for ifindex, old in before.items():
        if old.name not in watched and ifindex not in guarded:
            continue
        new = now.get(ifindex)
        if new is None:
            wait = ": waiting until it is back" if old.name in watched else ""
            yield f"{old.name}: gone (interface {ifindex}){wait}"
            continue
        if new.name != old.name:
            stays = ": it stays guarded" if ifindex in guarded else ""
            yield f"{old.name}: renamed to {new.name}{stays}"
        if new.mac != old.mac:
            yield f"{new.name}: its MAC address was {old.mac.hex(':')}, now {new.mac.hex(':')}"
        if new.is_up != old.is_up:
            yield f"{new.name}: set {'up' if new.is_up else 'down'}"
    for ifindex, new in now.items():
        if ifindex not in before and new.name in watched:
            yield f"{new.name}: there now (interface {ifindex})"


def address_change(before: Collection[Address], now: Collection[Address]) -> str:
    """Local addresses that came and went, in words."""
    parts = []
    for word, found in (("added", set(now) - set(before)), ("gone", set(before) - set(now))):
        texts = sorted(map(str, found))
        if texts:
            more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
            parts.append(f"{', '.join(texts[:SHOWN])}{more} {word}")
    return f"local addresses: {'; '.join(parts)}"
