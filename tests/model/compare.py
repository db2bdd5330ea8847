"""Model and program judge one sequence; the first difference, if any, for people to read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ntpguard.words import Reason, Verdict
from tests.model.memory import differences, words_of
from tests.model.model import Model, Shape
from tests.model.program import Program
from tests.model.sequence import Change, Packet, Step

CHECK_EVERY = 500
Met = Counter[tuple[Verdict, Reason]]


@dataclass(frozen=True)
class Difference:
    """Where the two part."""

    packet: int
    step: Step
    lines: list[str]

    def __str__(self) -> str:
        return "\n  ".join([f"packet {self.packet}: {self.step}", *self.lines[:20]])


def run(
    program: Program, steps: list[Step], check_every: int = CHECK_EVERY
) -> tuple[Difference | None, Model]:
    """Both judge `steps` from nothing on; state is compared every so many packets and at the end."""
    program.reset()
    model = Model(program.shape)
    count = 0
    step: Step | None = None
    for step in steps:
        if not isinstance(step, Packet):
            getattr(model, step.name)(*step.arguments)
            getattr(program, step.name)(*step.arguments)
            continue
        count += 1
        expected = model.judge(step.frame, step.clock_ns, step.chance)
        got = program.judge(step.frame, step.clock_ns, step.chance)
        if expected != got:
            return Difference(count, step, list(answers(expected, got))), model
        if count % check_every == 0:
            lines = differences(words_of(model), program.state())
            if lines:
                return Difference(count, step, lines), model
    assert step is not None
    lines = differences(words_of(model), program.state())
    return (Difference(count, step, lines) if lines else None), model


def answers(expected: tuple[int, bytes], got: tuple[int, bytes]) -> Iterator[str]:
    """How two answers differ."""
    if expected[0] != got[0]:
        yield f"return code: model {int(expected[0])}, program {got[0]}"
    if expected[1] != got[1]:
        yield f"packet: model   {expected[1].hex()}"
        yield f"        program {got[1].hex()}"


def first_difference(program: Program, steps: list[Step]) -> Difference | None:
    """None if there is none; else the packet after which model and program differ."""
    found, _ = run(program, steps)
    return found and (run(program, steps, check_every=1)[0] or found)


def smallest(program: Program, steps: list[Step]) -> list[Step]:
    """The steps with as many packets left out as can be while model and program still differ."""
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            rest = [one for one in steps[at : at + size] if not isinstance(one, Packet)]
            fewer = steps[:at] + rest + steps[at + size :]
            if len(rest) < len(steps[at : at + size]) and run(program, fewer)[0]:
                steps = fewer
                at += len(rest)
            else:
                at += size
        size //= 2
    return list(collapsed(steps))


def collapsed(steps: list[Step]) -> Iterator[Step]:
    """The steps without the changes that other changes undo before a packet sees them."""
    changes: dict[tuple[Any, ...], Change] = {}
    for step in steps:
        if isinstance(step, Change):
            changes[step.name, *step.arguments[:-1]] = step
        else:
            yield from changes.values()
            changes.clear()
            yield step


def met(model: Model) -> Met:
    """How many packets got each verdict for each reason: what happened, or would have."""
    total: Met = Counter()
    for counter in (model.packets, model.observed):
        for (_, _, verdict, reason), count in counter.items():
            total[verdict, reason] += count
    return total


class Programs:
    """Loaded programs by shape, on the CPU that this process is pinned to."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        self.loaded: dict[Shape, Program] = {}

    def of(self, shape: Shape) -> Program:
        """The program of this shape, loaded once."""
        if shape not in self.loaded:
            self.loaded[shape] = Program(shape, self.cpu)
        return self.loaded[shape]

    def close(self) -> None:
        """Lets go of all."""
        for program in self.loaded.values():
            program.close()
