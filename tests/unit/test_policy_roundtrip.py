"""A policy written as TOML reads as the same policy; each setting's row is whole."""

import ipaddress
from dataclasses import fields
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ntpguard import abi
from ntpguard.errors import PolicyError
from ntpguard.policy.check import DEFAULT, check_limit, parse_policy
from ntpguard.policy.header import Header, HeaderKind
from ntpguard.policy.kinds import (
    AddressKind,
    Boolean,
    Choice,
    Integer,
    Interval,
    ListKind,
    PrefixKind,
    Rate,
    RateKind,
    Share,
    Text,
)
from ntpguard.policy.model import ClassPolicy, Policy, SignaturePolicy
from ntpguard.policy.render import to_toml, values_of
from ntpguard.policy.settings import (
    CLASS_SETTINGS,
    REQUIRED,
    SETTINGS,
    SIGNATURE_SETTINGS,
    Setting,
)

ROWS = [*SETTINGS, *CLASS_SETTINGS, *SIGNATURE_SETTINGS]


def headers() -> st.SearchStrategy[Header]:
    digits = st.text("0123456789abcdef?", min_size=2, max_size=96)
    even = digits.map(lambda text: text[: len(text) // 2 * 2])
    return even.filter(lambda text: not text.endswith("??")).map(Header)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Whatever a kind may read."""
    match kind:
        case RateKind():
            rates = st.builds(
                Rate,
                st.integers(1, kind.most),
                st.sampled_from(["second", "minute", "hour", "day"]),
            )
            return rates | st.none() if kind.off else rates
        case Integer() | Interval():
            return st.integers(kind.least, kind.most)
        case Boolean():
            return st.booleans()
        case Choice():
            return st.sampled_from(kind.words)
        case Share():
            return st.fractions(Fraction(1, 1024), 1, max_denominator=10**19)  # of 20 digits
        case Text():
            return st.from_regex(kind.form, fullmatch=True)
        case AddressKind():
            return st.ip_addresses()
        case PrefixKind():
            return st.tuples(st.ip_addresses(), st.integers(0, 32)).map(
                lambda pair: ipaddress.ip_network(pair, strict=False)
            )
        case HeaderKind():
            return headers()
        case ListKind():
            most = min(kind.most, 5)
            return st.lists(values(kind.item), min_size=kind.least, max_size=most).map(tuple)
    raise AssertionError(kind)


def drawn(draw: Any, rows: tuple[Setting, ...]) -> dict[str, Any]:
    return {row.key: draw(values(row.kind)) for row in rows}


@st.composite
def limits(draw: Any) -> dict[str, Any]:
    """A rate, and a burst that the clock can keep."""
    names = {"rate", "burst", "leak"}
    found = {row.name: draw(values(row.kind)) for row in CLASS_SETTINGS if row.name in names}
    one = ClassPolicy("any", found["rate"], found["burst"], found["leak"], True)
    try:
        check_limit(one)
    except PolicyError as error:
        words = error.errors[0].split()
        found["burst"] = int(words[words.index("for") - 1])
    return found


@st.composite
def policies(draw: Any) -> Policy:
    of_file = drawn(draw, SETTINGS)
    kod = of_file.pop("kod.enabled")
    for name in ("rate", "burst", "leak"):
        of_file.pop(f"limit.{name}")
    classes = [ClassPolicy(name="default", kod=kod, **draw(limits()))]
    taken: set[Any] = set()
    names = values(CLASS_SETTINGS[0].kind).filter(lambda name: name != "default")
    for name in draw(st.lists(names, unique=True, max_size=4)):
        own = drawn(draw, CLASS_SETTINGS)
        prefixes = set(own["class.prefixes"]) - taken
        taken |= prefixes
        classes.append(
            ClassPolicy(
                name=name,
                prefixes=tuple(
                    sorted(prefixes, key=lambda p: (p.version, int(p.network_address), p.prefixlen))
                ),
                **{key: own[f"class.{key}"] for key in ("kod", "action", "control", "mode")},
                **draw(limits()),
            )
        )
    signatures = []
    for name in draw(st.lists(names, unique=True, max_size=4)):
        own = {row.name: draw(values(row.kind)) for row in SIGNATURE_SETTINGS if row.name != "name"}
        for absent in draw(
            st.sets(st.sampled_from(["header", "source_port", "fraction"]), max_size=2)
        ):
            own[absent] = None
        signatures.append(SignaturePolicy(name=name, **own))
    known = {field.name for field in fields(Policy)}
    named = {key.replace(".", "_"): value for key, value in of_file.items()}
    flat = {
        name if name in known else name.partition("_")[2]: value for name, value in named.items()
    }
    return Policy(classes=tuple(classes), signatures=tuple(signatures), **flat)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(policies())
def test_a_policy_written_back_reads_as_the_same_policy(policy: Policy) -> None:
    assert parse_policy(to_toml(policy)) == policy


@given(st.text(max_size=120) | st.text(" 0123456789abcdefABCDEF.?xo:", max_size=120))
def test_a_header_is_read_or_refused_and_never_changed_by_writing(text: str) -> None:
    kind = HeaderKind()
    try:
        header = kind.read(text)
    except ValueError:
        return
    assert kind.read(str(header)) == header
    assert len(header.value) == len(header.mask) == abi.HEADER_BYTES
    assert 0 < header.fixed_bits == int.from_bytes(header.mask).bit_count()


@given(st.text(" 0123456789abcdefABCDEF.?xXoOlL*:,_-", max_size=60))
def test_the_header_that_was_probably_meant_is_one(text: str) -> None:
    kind = HeaderKind()
    try:
        kind.read(text)
    except ValueError as error:
        _, hinted, meant = str(error).partition(': did you mean "')
        assume(hinted)
        kind.read(meant.removesuffix('"?'))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_every_setting_has_a_meaning_a_range_and_a_default_within_it(row: Setting) -> None:
    assert row.meaning and row.kind.wanted
    if row.default is not None and row.default is not REQUIRED:
        one = f"{row.name} = {row.kind.write(row.default)}"
        text = f"[{row.section}]\n{one}" if row.section else one
        if row in SETTINGS:
            assert values_of(parse_policy(text))[row.key] == row.default


def test_every_setting_of_the_file_is_shown() -> None:
    assert list(values_of(DEFAULT)) == [row.key for row in SETTINGS]


def test_no_setting_is_declared_twice() -> None:
    keys = [row.key for row in ROWS]
    assert len(keys) == len(set(keys))
