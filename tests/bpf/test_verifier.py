"""The program is well within what the verifiers of older kernels accept."""

import re

import pytest

from ntpguard import abi
from ntpguard.kernel import libbpf
from ntpguard.policy.check import parse_policy
from ntpguard.policy.compile import compile_policy
from ntpguard.program import constants
from tests.bpf.guard import OBJECT, load_with_log
from tests.bpf.packets import SERVER_MAC

STACK_BYTES = 512
DEEPEST = 64  # of a function; of those that the program calls, none calls another that calls one
# of a million; Linux 6.1 walks four times as many as 6.18, 105,072 of what clang 22 makes
INSTRUCTIONS = 110_000


@pytest.mark.parametrize(
    "policy",
    ["", "ports = [123, 1123, 2123, 3123]", "[sources]\nipv4_prefix = 24\nipv6_prefix = 48\n"],
)
def test_the_stack_and_the_walk_are_small_enough_for_linux_6_1(policy: str) -> None:
    """Linux before 6.3 counts each frame of a chain of calls as a multiple of 32 bytes."""
    compiled = compile_policy(parse_policy(policy))
    shape = compiled.table
    table = abi.Table(buckets=1024, ipv4_prefix=shape.ipv4_prefix, ipv6_prefix=shape.ipv6_prefix)
    with libbpf.Object(OBJECT) as program:
        program.set_constants(bytes(constants(table, compiled, SERVER_MAC)))
        text = load_with_log(program, program.load)
    depths = re.findall(r"^subprog .* stack (\d+)$", text, re.MULTILINE)  # since Linux 7
    if not depths:
        depths = re.findall(r"^stack depth (\S+)$", text, re.MULTILINE)[0].split("+")
    main, *others = (-(-int(depth) // 32) * 32 for depth in depths)
    assert main + 2 * DEEPEST <= STACK_BYTES, depths
    assert max(others) <= DEEPEST, depths
    (walked,) = re.findall(r"^processed (\d+) insns", text, re.MULTILINE)
    assert int(walked) < INSTRUCTIONS
