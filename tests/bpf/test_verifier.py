"""The program is well within what the verifiers of older kernels accept."""

import ctypes
import re

from ntpguard.kernel import libbpf, maps
from tests.bpf.guard import OBJECT

BPF_LOG_STATS = 4
STACK_BYTES = 512
DEEPEST = 64  # two functions below judge
INSTRUCTIONS = 100_000  # of a million


def test_the_stack_and_the_walk_are_small_enough_for_linux_6_1() -> None:
    """Linux before 6.3 counts each frame of a chain of calls as a multiple of 32 bytes."""
    log = ctypes.create_string_buffer(1 << 20)
    library = libbpf._library()
    with libbpf.Object.open(OBJECT) as program:
        pointer = ctypes.c_void_p(program._program(maps.PROGRAM))
        library.bpf_program__set_log_level(pointer, BPF_LOG_STATS)
        library.bpf_program__set_log_buf(pointer, log, ctypes.c_size_t(len(log)))
        program.load()
    text = log.value.decode()
    found = re.search(r"stack depth (\S+)\nprocessed (\d+) insns", text)
    assert found, text
    main, judge, *others = (-(-int(depth) // 32) * 32 for depth in found[1].split("+"))
    assert main + judge + DEEPEST <= STACK_BYTES, found[1]
    assert max(others) <= DEEPEST, found[1]
    assert int(found[2]) < INSTRUCTIONS
