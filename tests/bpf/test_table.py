"""The source table under random operations of two CPUs (bpf/sources.h, alone)."""

import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntpguard import abi, sources
from ntpguard.kernel import libbpf
from ntpguard.keys import hash_key
from tests import testrun
from tests.bpf.clang import compile_bpf
from tests.bpf.guard import SEED

BUCKETS = 4  # for 64 sources: 16 slots
OPERATIONS = 100_000_000
ROUND = 500_000
FRAME = bytes(64)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[libbpf.Object]:
    made = compile_bpf(Path(__file__).with_name("hammer.bpf.c"), tmp_path / "hammer.bpf.o")
    constants = abi.Constants(seed=(ctypes.c_uint64 * 2)(*SEED), bucket_mask=BUCKETS - 1)
    with libbpf.Object(made) as opened:
        opened.set_constants(bytes(constants))
        opened.set_max_entries("sources", BUCKETS)
        opened.load()
        yield opened


@pytest.mark.timeout(400)
def test_a_hundred_million_operations_leave_no_slot_twice_stuck_or_torn(
    program: libbpf.Object,
) -> None:
    fd = program.program_fd("hammer")
    size = abi.size(abi.Bucket) * BUCKETS
    memory = libbpf.map_mmap(program.map_fd("sources"), size)
    words = memoryview(memory)[:size].cast("Q")
    cpus = sorted(os.sched_getaffinity(0))[:2]
    torn: list[int] = []
    stop = threading.Event()
    accepted = 0

    def read() -> None:
        nonlocal accepted
        while not stop.is_set():
            for index in range(BUCKETS):
                for way in range(abi.WAYS):
                    slot = sources.read_slot(words, index, way, SEED)
                    if slot:
                        accepted += 1
                        if hash_key(slot[0], SEED) & (BUCKETS - 1) not in (index, index ^ 1):
                            torn.append(slot[0])

    def hammer(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        testrun.run(fd, FRAME, ROUND)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(OPERATIONS // (ROUND * 2)):
            threads = [threading.Thread(target=hammer, args=(cpus[i % len(cpus)],)) for i in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # now nobody writes
            buckets = (abi.Bucket * BUCKETS).from_buffer_copy(words.tobytes())
            keys = [key for bucket in buckets for key in bucket.key if key]
            assert len(keys) == len(set(keys)), "a source has two slots"
            assert not any(word & abi.GCRA_BUSY for bucket in buckets for word in bucket.gcra)
    finally:
        stop.set()
        reader.join()
    raws = libbpf.map_lookup_percpu(program.map_fd("operations"), bytes(4), 24)
    found, inserted, refused = (
        sum(int.from_bytes(raw[i : i + 8], "little") for raw in raws) for i in (0, 8, 16)
    )
    assert found + inserted + refused == OPERATIONS
    assert min(found, inserted, refused) > 10_000  # how many depends on how the CPUs meet
    assert torn == []
    assert accepted > 1000
