"""Mutated frames through the loaded program, beside the model: the first on which the two part."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from tests.fuzz import seeds
from tests.model.compare import Programs, run, smallest
from tests.model.sequence import Packet, Sequence, Step, spoil

SHORTEST, LONGEST = 14, 2048  # the kernel runs no shorter ones
FRAMES_AT_ONCE = 300
# where lengths, kinds and chains stand, with a tag or without
STRUCTURE = (12, 14, 16, 17, 18, 20, 21, 23, 24, 27, 36, 38, 39, 42, 54, 55, 58, 59)
TELLING = (
    b"\x81\x00",
    b"\x88\xa8",
    b"\x08\x00",
    b"\x86\xdd",
    b"\x00\x00",
    b"\xff\xff",
    b"\x00\x2c",
)


def known(folder: Path) -> list[bytes]:
    """The frames in the steps of libFuzzer's inputs, and the seeds' own."""
    found = {bytes(one) for one in seeds.frames()}
    for path in folder.iterdir():
        data = path.read_bytes()[1:]
        while len(data) > 2:
            kind, size = data[0], int.from_bytes(data[1:3], "little")
            size = size % LONGEST if kind > seeds.AGAIN else 0
            found.add(data[3 : 3 + size])
            data = data[3 + size :]
    return sorted(one for one in found if len(one) >= SHORTEST)


def mutated(random: Random, frame: bytes) -> bytes:
    """Cut, spoilt, or another structure written over its own or put in."""
    wire = bytearray(frame)
    for _ in range(random.randrange(1, 4)):
        at = random.choice([one for one in STRUCTURE if one < len(wire)] or [0])
        what = random.randrange(4)
        if what == 0:
            spoil(random, wire)
        elif what == 1:
            new = random.choice(TELLING)
            wire[at : at + len(new)] = new
        elif what == 2:  # one more tag
            wire[12:12] = random.choice(TELLING[:2]) + random.randbytes(2)
        else:
            wire[at] = random.getrandbits(8)
    return bytes(wire[:LONGEST]).ljust(SHORTEST, b"\0")


def steps(seed: int, frames: Iterable[bytes]) -> Iterator[Step]:
    """The model's policy, addresses and entries of this seed, then the frames."""
    sequence = Sequence(seed, 0)
    yield from sequence.steps
    random, clock_ns = sequence.random, sequence.clock_ns
    for frame in frames:
        for _ in range(random.choice((1, 1, 1, 6))):
            clock_ns += random.choice((0, 0, 0, 10**6, 10**9))
            yield Packet(clock_ns, random.choice((0xFFFFFFFF, random.getrandbits(32))), frame)


def differences(
    frames: list[bytes], programs: Programs, seeds: Iterable[int], until: float
) -> tuple[int, list[str]]:
    """How many mutated frames were judged, and each difference by its fewest steps.

    `until` is of time.monotonic.
    """
    judged, found = 0, list[str]()
    for seed in seeds:
        if time.monotonic() > until:
            break
        random = Random(seed)
        some = [mutated(random, random.choice(frames)) for _ in range(FRAMES_AT_ONCE)]
        program = programs.of(Sequence(seed, 0).shape)
        taken = list(steps(seed, some))
        difference, _ = run(program, taken)
        judged += sum(isinstance(step, Packet) for step in taken)
        if difference:
            few = "\n".join(map(str, smallest(program, taken)))
            found.append(f"seed {seed}: {difference}\n{few}")
    return judged, found
