"""Metric families, a line each."""

from collections.abc import Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from ntpguard.survey import Histogram

Samples = Iterable[tuple[tuple[str, ...], float]]  # values of the labels, value


def gauge(name: str, text: str, labels: tuple[str, ...] = (), samples: Samples = ()) -> Metric:
    """A gauge with a sample for each combination of labels."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def counter(name: str, text: str, labels: tuple[str, ...] = (), samples: Samples = ()) -> Metric:
    """A counter; its name without "_total"."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def one(value: float) -> Samples:
    """The only sample of a metric without labels."""
    return [((), value)]


def histogram(name: str, text: str, found: Histogram) -> Metric:
    """A histogram of what is there now: its counts go up and down."""
    family = GaugeHistogramMetricFamily(name, text)
    total, buckets = 0.0, []
    for bound, count in zip((*found.bounds, float("inf")), found.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
    family.add_metric([], buckets, found.sum)
    return family
