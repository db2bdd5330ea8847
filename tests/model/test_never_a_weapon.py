"""The guard is never a weapon: what holds of the real program under any policy and any packets."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntpguard.abi import Xdp
from ntpguard.policy.check import DEFAULT
from ntpguard.policy.compile import compile_policy
from ntpguard.words import Mode
from tests.bpf.packets import SERVER_MAC, TRANSMIT, ntp
from tests.model.compare import Programs
from tests.model.policy import Root
from tests.model.program import Program
from tests.model.seeds import for_seeds
from tests.model.sequence import Packet, Sequence

PEERS = Path(__file__).parents[2] / "build" / "peers" / "usr" / "sbin"
PACKETS = 2000
NEVER = 0xFFFFFFFF


def replies(programs: Programs, seed: int, default: bool) -> Iterator[tuple[Program, bytes, bytes]]:
    """Each request that was answered, and the answer; everything else must come back untouched."""
    sequence = Sequence(seed, PACKETS)
    program = programs.of(sequence.shape)
    program.reset()
    bytes_in = bytes_out = 0
    for step in sequence.steps:
        if not isinstance(step, Packet):
            getattr(program, step.name)(*step.arguments)
            if default:
                judge_by_the_default(program)
            continue
        code, out = program.judge(step.frame, step.clock_ns, step.chance)
        assert code in (Xdp.PASS, Xdp.DROP, Xdp.TX)
        bytes_in += len(step.frame)
        if code == Xdp.TX:
            bytes_out += len(out)
            assert len(out) <= len(step.frame)
            yield program, step.frame, out
        else:
            assert out == step.frame
    assert bytes_out <= bytes_in


def judge_by_the_default(program: Program) -> None:
    """Policy and mode of a guard that nobody configured but for `mode`."""
    program.set_policy_words(0, bytes(compile_policy(DEFAULT).policy))
    program.set_root(Root(Mode.ENFORCE))


def layout(frame: bytes) -> tuple[int, int]:
    """Where UDP begins, and the bytes of an address, in a frame that has neither IP options nor
    extension headers: no other is answered.
    """
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    if frame[at : at + 3] == b"\x08\x00\x45":
        return at + 22, 4
    assert frame[at : at + 2] == b"\x86\xdd" and frame[at + 8] == 17
    return at + 42, 16


@pytest.mark.parametrize("default", [True, False], ids=["the default policy", "any policy"])
def test_only_a_mode_3_request_is_answered_to_its_sender_with_no_more_bytes(
    programs: Programs, default: bool
) -> None:
    answered = 0

    def judge(seed: int) -> None:
        nonlocal answered
        for _, request, answer in replies(programs, seed, default):
            answered += 1
            at, size = layout(request)
            assert request[at + 8] & 7 == 3
            assert request[at + 48 : at + 56] != bytes(8)
            assert answer[at + 8] & 7 == 4
            assert answer[at : at + 2] == request[at + 2 : at + 4]
            assert answer[at + 2 : at + 4] == request[at : at + 2]
            assert answer[at - 2 * size : at - size] == request[at - size : at]
            assert answer[at - size : at] == request[at - 2 * size : at - size]
            assert (answer[:6], answer[6:12]) == (request[6:12], request[:6])

    for_seeds(25, judge)
    assert answered > 20


@pytest.mark.parametrize("default", [True, False], ids=["the default policy", "any policy"])
def test_a_kod_is_never_answered_by_any_ntpguard(programs: Programs, default: bool) -> None:
    """By the one that sent it, or by another one that guards its receiver."""
    returned = 0

    def judge(seed: int) -> None:
        nonlocal returned
        for program, _, answer in replies(programs, seed, default):
            at, _ = layout(answer)
            to_the_port = answer[:at] + answer[at + 2 : at + 4] * 2 + answer[at + 4 :]
            guarded = answer[: at + 2] + (123).to_bytes(2, "big") + answer[at + 4 :]
            for back in (answer, to_the_port, guarded):
                frame = SERVER_MAC + back[6:]
                code, out = program.judge(frame, program.guard.inputs.clock_ns, NEVER)
                assert code != Xdp.TX
                assert out == frame
                returned += 1

    for_seeds(25, judge)
    assert returned > 60


def kods() -> Iterator[bytes]:
    """A KoD's payload in every version, as tests/bpf/test_packets.py shows that it is sent."""
    for version in range(1, 5):
        yield ntp(
            mode=4,
            version=version,
            leap=3,
            precision=0xE9,
            reference_id=b"RATE",
            origin=TRANSMIT,
            receive=TRANSMIT,
            transmit=TRANSMIT,
        )


@pytest.fixture(params=["chronyd", "ntpd"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A real daemon, server and client at once, on this namespace's loopback interface."""
    configuration = tmp_path / "configuration"
    tmp_path.chmod(0o750)
    if request.param == "chronyd":
        command = [str(PEERS / "chronyd"), "-x", "-d", "-u", "root", "-f", str(configuration)]
        text = f"local stratum 1\nallow\nserver 127.0.0.9 port 9\npidfile {tmp_path}/pid\n"
        text += f"bindcmdaddress {tmp_path}/command\n"
    else:
        command = [str(PEERS / "ntpd"), "-n", "-c", str(configuration)]
        text = "disable ntp\nserver 127.127.1.0\nfudge 127.127.1.0 stratum 1\nserver 127.0.0.9\n"
        text += "restrict default\n"
    configuration.write_text(text)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield str(request.param)
    finally:
        process.terminate()
        process.wait(10)


def test_a_kod_is_never_answered_by_a_daemon(daemon: str) -> None:
    """Sent before a request: what comes back answers requests, and each no more than once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.connect(("127.0.0.1", 123))
        deadline = time.monotonic() + 30
        sent: list[bytes] = []
        answers: list[bytes] = []
        while not answers:
            sent.append((len(sent) + 1).to_bytes(8, "big"))
            try:
                for kod in kods():
                    client.send(kod)
                client.send(ntp(transmit=sent[-1]))
                answers.append(client.recv(1000)[24:32])
            except (TimeoutError, ConnectionRefusedError):
                assert time.monotonic() < deadline, f"{daemon} answers no request"
        with contextlib.suppress(TimeoutError):
            while True:  # a busy machine may have answered late
                answers.append(client.recv(1000)[24:32])
        assert set(answers) <= set(sent), f"{daemon} answered something else"
        assert len(answers) == len(set(answers))
