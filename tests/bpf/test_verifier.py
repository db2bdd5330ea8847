"""The program is well within what the verifiers of older kernels accept."""

import re

from ntpguard.kernel import libbpf
from tests.bpf.guard import OBJECT, load_with_log

STACK_BYTES = 512
DEEPEST = 64  # two functions below judge
INSTRUCTIONS = 100_000  # of a million


def test_the_stack_and_the_walk_are_small_enough_for_linux_6_1() -> None:
    """Linux before 6.3 counts each frame of a chain of calls as a multiple of 32 bytes."""
    with libbpf.Object.open(OBJECT) as program:
        text = load_with_log(program, program.load)
    found = re.search(r"stack depth (\S+)\nprocessed (\d+) insns", text)
    assert found, text
    main, judge, *others = (-(-int(depth) // 32) * 32 for depth in found[1].split("+"))
    assert main + judge + DEEPEST <= STACK_BYTES, found[1]
    assert max(others) <= DEEPEST, found[1]
    assert int(found[2]) < INSTRUCTIONS
