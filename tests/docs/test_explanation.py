"""The figures in the explanations of the limit and of the table are those of the code."""

import json
import math
import re

import pytest

from ntpguard import abi
from ntpguard.policy.check import parse_policy
from ntpguard.policy.compile import (
    ESTABLISHED_STEPS,
    GATE_SECONDS,
    compile_policy,
    emission_interval,
    memory_bytes,
)
from ntpguard.policy.settings import SOURCE_RATE
from ntpguard.policy.tables import CLOCK_TICK
from tests.docs.blocks import ROOT

BUILT_IN = parse_policy("")
DEFAULT = BUILT_IN.classes[0]
WORDS = {4: "four", 5: "five", 8: "eight", 16: "sixteen"}
SOURCES_H = (ROOT / "bpf/sources.h").read_text(encoding="utf-8")


def said(page: str, text: str) -> bool:
    """Whether the page says so, wherever its lines end."""
    words = (ROOT / "docs/explanation" / page).read_text(encoding="utf-8").split()
    return text in " ".join(words)


def share_without_slot() -> float:
    """Of as many sources as the capacity: Poisson, mean 4 to a set of 8."""
    over = sum((n - 8) * math.exp(-4) * 4**n / math.factorial(n) for n in range(9, 60))
    return over / 4


@pytest.mark.parametrize(
    "text",
    [
        f'`rate = "{DEFAULT.rate}"` with `burst = {DEFAULT.burst}`',
        f"send {DEFAULT.burst} requests at once",
        f"{CLOCK_TICK * 1000} ms at most",
        f"at most {SOURCE_RATE.most}/second",
        f"one request in {WORDS[DEFAULT.leak.denominator]} is answered",
        f"in {abi.LEAK_SHARDS} shares",
        f"who did not heed {WORDS[BUILT_IN.kod_patience]}",
        f"One source in {WORDS[1 << abi.PART_BITS]} is never kissed",
        f"well-spaced for {WORDS[BUILT_IN.established_after // 60]} minutes",
    ],
)
def test_a_figure_in_the_explanation_of_the_limit_is_the_codes(text: str) -> None:
    assert said("limit.md", text)


@pytest.mark.parametrize(
    "text",
    [
        f"each of {WORDS[abi.WAYS]} slots in two cache lines of 64 bytes",
        f"`capacity = {BUILT_IN.capacity:_}` takes {memory_bytes(BUILT_IN, 1)['sources'] >> 20} MiB",
        f"{WORDS[ESTABLISHED_STEPS + 1]} well-spaced requests over at least "
        f"{WORDS[BUILT_IN.established_after // 60]} minutes",
        f"all {WORDS[2 * abi.WAYS]} slots",
        f"a table's worth of them in {GATE_SECONDS} seconds",
    ],
)
def test_a_figure_in_the_explanation_of_the_table_is_the_codes(text: str) -> None:
    assert said("table.md", text)


def test_what_is_said_of_the_tables_room_and_time_is_so() -> None:
    assert said("table.md", "about one of a hundred finds no slot")
    assert 0.005 < share_without_slot() < 0.015
    assert compile_policy(BUILT_IN).table.buckets * abi.WAYS == 2 * BUILT_IN.capacity
    assert said("table.md", "two slots, 64 bytes, for each source")
    assert said("table.md", "for an hour after its last request")
    found = re.search(r"ESTABLISHED_FOR \((\d+)ULL \* 1000000000", SOURCES_H)
    assert found and int(found[1]) == 3600
    assert said("limit.md", "the requests of any *t* seconds no more than burst + rate")
    limit = compile_policy(BUILT_IN).policy.classes[0].limit
    interval = emission_interval(DEFAULT.rate.per_second) << abi.GCRA_TAT_SHIFT
    assert limit.burst_tolerance == (DEFAULT.burst - 1) * interval


def test_an_lru_hash_costs_what_is_said_for_a_million_sources() -> None:
    assert said("table.md", "takes half as long again for a million sources")
    measured = json.loads((ROOT / "tests/bench/RESULT.json").read_text(encoding="utf-8"))
    assert 1.4 < measured["cost"]["figures"]["times_lru_hash_1000000"] < 1.7
