"""The signatures that ntpguard ships: each knows the true packet, and not its near miss."""

import ctypes
from pathlib import Path

import pytest

import ntpguard.policy
from ntpguard import abi
from ntpguard.kernel import libbpf
from ntpguard.policy.check import parse_policy
from ntpguard.policy.compile import compile_policy
from ntpguard.words import Verdict
from tests.bpf.guard import Guard, guard
from tests.bpf.packets import IPV4, IPV6, Frame

LIBRARY = (Path(ntpguard.policy.__file__).parent / "signatures.toml").read_text(encoding="utf-8")
SECONDS = bytes.fromhex("eaf1b2c3")
MICROSECONDS = SECONDS + (123_456 * 2**32 // 1_000_000).to_bytes(4, "big")
ROUNDED = SECONDS + (123_456 * 2**32 // 1_000_000 + 900).to_bytes(4, "big")
NANOSECONDS = SECONDS + (123_456_789).to_bytes(4, "big")
SCALED = SECONDS + (3_000_000_000).to_bytes(4, "big")
ONE_SECOND = bytes.fromhex("00010000")


def request(head: str, rest: bytes, transmit: bytes, port: int = 40000) -> Frame:
    payload = (bytes.fromhex(head) + rest).ljust(40, b"\0") + transmit
    assert len(payload) == 48
    return IPV4.but(payload=payload, source_port=port)


# name -> true packets, near misses: one field is another
PACKETS: dict[str, tuple[list[Frame], list[Frame]]] = {
    "fortigate-v3": (
        [request("db0004fa", ONE_SECOND * 2, MICROSECONDS)],
        [
            request("db0004fa", ONE_SECOND * 2, ROUNDED),
            request("1b0004fa", ONE_SECOND * 2, MICROSECONDS),
            request("db0003fa", ONE_SECOND * 2, MICROSECONDS),
            request("db0004fa", ONE_SECOND * 2 + b"LOCL", MICROSECONDS),
        ],
    ),
    "fortigate-v4": (
        [request("e30004fa", ONE_SECOND * 2, MICROSECONDS)],
        [
            request("e30004fa", ONE_SECOND * 2, ROUNDED),
            request("e30004fa", ONE_SECOND, MICROSECONDS),
            request("e30006fa", ONE_SECOND * 2, MICROSECONDS),
        ],
    ),
    "timesyncd-loop": (
        [request("23000000", b"", NANOSECONDS)],
        [
            request("23000000", b"", SCALED),
            request("1b000000", b"", NANOSECONDS),
            request("23000000", bytes(35) + b"\1", NANOSECONDS),
        ],
    ),
    "ios-ntp": (
        [request("230004fa", ONE_SECOND * 2, SCALED)],
        [
            request("e30004fa", ONE_SECOND * 2, ROUNDED),
            request("230004fa", ONE_SECOND, SCALED),
            request("230004fa", ONE_SECOND * 2 + bytes(27) + b"\1", SCALED),
        ],
    ),
    "arduino-1n14": (
        [request("e30006ec", bytes(8) + b"1N14", bytes(8), port=1337)],
        [
            request("e30006ec", bytes(8) + b"1N14", bytes(8), port=1338),
            request("e30006ec", bytes(8) + b"1N15", bytes(8), port=1337),
            request("e30006ec", bytes(8) + b"1N14", SCALED, port=1337),
        ],
    ),
    "go-beevik": (
        [request("23000020", b"", SCALED)],
        [
            request("23000021", b"", SCALED),
            request("1b000020", b"", SCALED),
            request("23000020", bytes(12) + b"\1", SCALED),
        ],
    ),
}


def load(one: Guard) -> list[str]:
    """Runs the library beside a limit of one request; the signatures' names, in the maps' order."""
    compiled = compile_policy(
        parse_policy(LIBRARY + '[limit]\nrate = "1/hour"\nburst = 1\n', "library")
    )
    ctypes.memmove(
        ctypes.addressof(one.policy), bytes(compiled.policy), ctypes.sizeof(compiled.policy)
    )
    return list(compiled.signatures)


def counts(one: Guard, names: list[str]) -> dict[str, tuple[int, int]]:
    """Requests matched and blocked by each signature that has matched."""
    found = {}
    fd = one.object.map_fd("signature_counters")
    for index, name in enumerate(names):
        raws = libbpf.map_lookup_percpu(
            fd, index.to_bytes(4, "little"), abi.size(abi.SignatureCounters)
        )
        cells = [abi.SignatureCounters.from_buffer_copy(raw) for raw in raws]
        total = sum(cell.matched for cell in cells), sum(cell.blocked for cell in cells)
        if any(total):
            found[name] = total
    return found


def test_every_signature_has_its_packets_and_only_observes() -> None:
    policy = parse_policy(LIBRARY, "library")
    assert [one.name for one in policy.signatures] == list(PACKETS)
    assert {(one.mode, one.when) for one in policy.signatures} == {("observe", "excess")}
    assert policy.warnings == ()


@pytest.mark.parametrize("name", PACKETS)
@pytest.mark.parametrize("source", ["IPv4", "IPv6"])
def test_a_true_packet_in_excess_is_counted_and_a_near_miss_is_not(name: str, source: str) -> None:
    with guard() as one:
        names = load(one)
        true, near = PACKETS[name]

        def twice(frame: Frame, host: int) -> None:
            """Within the limit, then in excess; each frame of another source."""
            at4, at6 = f"203.0.113.{host}", f"2001:db8:7:{host:x}::1"
            own = (
                frame.but(source=at4)
                if source == "IPv4"
                else IPV6.but(source=at6, payload=frame.payload, source_port=frame.source_port)
            )
            assert one.verdict(own) == Verdict.PASS
            before = counts(one, names)
            one.run(own)
            assert (counts(one, names) == before) == (frame in near), frame

        for host, frame in enumerate(near, 10):
            twice(frame, host)
        assert name not in counts(one, names)
        for host, frame in enumerate(true, 100):
            twice(frame, host)
        assert counts(one, names)[name] == (len(true), 0)
