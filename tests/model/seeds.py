"""Tests that take seeds."""

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


def for_seeds(examples: int, judge: Callable[[int], None]) -> None:
    """`judge` with seeds that hypothesis draws; a seed has no smaller one to look for."""
    settings(
        max_examples=examples,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
        database=None,
    )(given(st.integers(0, 2**32 - 1))(judge))()
