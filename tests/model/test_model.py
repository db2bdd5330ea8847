"""The model and the real program judge the same packets and remember the same."""

from typing import Any

import pytest

from ntpguard import abi
from ntpguard.words import Reason
from tests.model import frame, limits, model, policy
from tests.model.compare import Met, Programs, first_difference, met, run, smallest
from tests.model.seeds import for_seeds
from tests.model.sequence import Packet, Sequence

SEEDS, PACKETS_PER_SEED = 50, 2000
CHANGED_SEEDS = 100


def test_model_and_program_judge_and_remember_alike_and_meet_every_reason(
    programs: Programs,
) -> None:
    total = Met()

    def judge(seed: int) -> None:
        sequence = Sequence(seed, PACKETS_PER_SEED)
        program = programs.of(sequence.shape)
        difference, judged = run(program, sequence.steps)
        total.update(met(judged))
        assert not difference, f"seed {seed}: {first_difference(program, sequence.steps)}"

    for_seeds(SEEDS, judge)
    assert {reason for _, reason in total} == set(Reason)


# one number of the rules, a little off: the comparison must notice each
MISTAKES = {
    "source port 1024 is not kissed": (frame, "LEAST_PORT", 1025),
    "a KoD's poll is clamped to 11": (frame, "POLL_MOST", 11),
    "nine headers are followed": (frame, "HEADERS", 9),
    "a refusal is felt half as long": (limits, "BITES", 1 << 19),
    "established sources are kept for half an hour": (limits, "HOUR", limits.HOUR // 2),
    "a KoD is heeded within a unit less": (model, "ANSWERED", model.ANSWERED - 1),
    "a KoD is unheeded after one packet": (model, "UNHEEDING", 1),
    "a KoD is forgotten after 5 minutes": (model, "QUIET", model.QUIET // 3),
    "five well-spaced requests make an established source": (model, "ESTABLISHED_STEPS", 4),
    "excess saturates at 254": (model, "COUNTER_SATURATES", 254),
    "every 32nd excess packet is sampled": (model, "SAMPLE", 32),
    "the microsecond test is a little wider": (policy, "TRUNCATED", int(0.9 * 2**32)),
    "a seventh of the leak is put by": (model, "PUT_BY", 7),
    "a shard keeps nothing for established sources": (model, "NEWCOMERS", 1),
    "seven live entries are looked at": (abi, "ENTRY_DEPTH", 7),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_model_that_errs_is_found_out(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, mistake: tuple[Any, str, int]
) -> None:
    monkeypatch.setattr(*mistake)
    for seed in range(CHANGED_SEEDS):
        sequence = Sequence(seed, PACKETS_PER_SEED)
        if run(programs.of(sequence.shape), sequence.steps)[0]:
            return
    raise AssertionError(f"no difference in {CHANGED_SEEDS} sequences")


def test_what_differs_is_shown_by_a_few_packets(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame, "POLL_LEAST", 7)
    for seed in range(CHANGED_SEEDS):
        sequence = Sequence(seed, PACKETS_PER_SEED)
        program = programs.of(sequence.shape)
        if run(program, sequence.steps)[0]:
            steps = smallest(program, sequence.steps)
            # a burst of one source, and the request that is kissed
            assert 2 <= sum(isinstance(step, Packet) for step in steps) <= 40
            difference = str(first_difference(program, steps))
            assert "packet: model" in difference and "program" in difference
            return
    raise AssertionError("no KoD with a poll of 6")
