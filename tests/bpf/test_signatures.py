"""Signatures: what a packet shape is known by, and what is done about it."""

from collections.abc import Iterator

import pytest

from ntpguard import abi
from ntpguard.kernel import libbpf
from ntpguard.words import Family, Reason, Verdict
from tests.bpf.guard import ALWAYS, Guard, guard, rule
from tests.bpf.packets import IPV4, ntp


@pytest.fixture
def one() -> Iterator[Guard]:
    with guard() as loaded:
        yield loaded


def signature(
    value: bytes = b"", mask: bytes | None = None, port: int | None = None, **settings: int
) -> abi.Signature:
    found = abi.Signature(**settings)
    found.value[: len(value)] = value
    found.mask[: len(value)] = b"\xff" * len(value) if mask is None else mask
    if port is not None:
        found.source_port = port >> 8 | (port & 255) << 8
        found.flags |= abi.SIGNATURE_SOURCE_PORT
    return found


def set_signatures(one: Guard, always: list[abi.Signature], excess: list[abi.Signature]) -> None:
    one.set_rules(rule(), signatures_always=len(always), signatures=len(always) + len(excess))
    for index, each in enumerate(always + excess):
        one.policy[0].signature[index] = each


def test_a_signature_blocks_a_shape_at_once_or_in_excess_only(one: Guard) -> None:
    nixie = IPV4.but(source_port=1337, payload=ntp(leap=3, stratum=0, reference_id=b"1N14"))
    shape = signature(bytes([0xE3]), port=1337)
    set_signatures(one, [shape], [])
    assert one.verdict(nixie) == Verdict.DROP
    assert one.verdict(nixie.but(source_port=1338)) == Verdict.PASS
    set_signatures(one, [], [shape])
    one.advance(10)
    one.inputs.chance = ALWAYS
    assert [one.verdict(nixie) for _ in range(3)] == [Verdict.PASS, Verdict.DROP, Verdict.DROP]
    assert one.verdict(IPV4) == Verdict.PASS  # of another shape: leaks
    assert one.counted()[Family.IPV4, Verdict.DROP, Reason.SIGNATURE, 0] == 3


def test_a_signature_that_observes_counts_and_decides_nothing(one: Guard) -> None:
    set_signatures(one, [signature(bytes([0x23]), flags=abi.SIGNATURE_OBSERVE)], [])
    assert one.verdict(IPV4) == Verdict.PASS
    raws = libbpf.map_lookup_percpu(one.object.map_fd("signature_counters"), bytes(4), 16)
    assert sum(int.from_bytes(raw[:8], "little") for raw in raws) == 1


@pytest.mark.parametrize(
    "fraction, wanted, blocked",
    [
        (999_999_999, abi.FRACTION_NANOSECONDS, True),
        (1_000_000_000, abi.FRACTION_NANOSECONDS, False),
        (123456 * 2**32 // 1_000_000, abi.FRACTION_MICROSECONDS, True),
        (123456 * 2**32 // 1_000_000 + 1000, abi.FRACTION_MICROSECONDS, False),
        (5, abi.FRACTION_ANY, True),
    ],
)
def test_a_signature_knows_clocks_that_are_not_scaled(
    one: Guard, fraction: int, wanted: int, blocked: bool
) -> None:
    set_signatures(one, [signature(fraction=wanted)], [])
    transmit = bytes.fromhex("eaf1b2c3") + fraction.to_bytes(4, "big")
    assert (one.verdict(IPV4.but(payload=ntp(transmit=transmit))) == Verdict.DROP) == blocked
