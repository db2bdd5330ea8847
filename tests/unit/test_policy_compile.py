"""What the packet path is given: prefixes, bounds and signatures, compiled."""

import ipaddress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntpguard import abi
from ntpguard.errors import PolicyError
from ntpguard.moments import NANOSECONDS
from ntpguard.policy.check import DEFAULT, parse_policy, read_policy
from ntpguard.policy.compile import (
    LONGEST_TOLERANCE,
    Compiled,
    bound,
    compile_policy,
    memory_bytes,
    spacing,
)
from ntpguard.policy.kinds import Network

# few addresses and lengths near the sources', so that prefixes cover one another
IPV4 = st.tuples(
    st.integers(0, 15).map(lambda n: n << 4 | 0xCB007100),
    st.sampled_from([0, 24, 26, 27, 28, 30, 32]),
)
IPV6 = st.tuples(
    st.integers(0, 15).map(lambda n: 0x20010DB8 << 96 | n << 60),
    st.sampled_from([0, 32, 61, 62, 64, 65, 128]),
)
NETWORKS = (IPV4 | IPV6).map(
    lambda pair: ipaddress.ip_network((ipaddress.ip_address(pair[0]), pair[1]), strict=False)
)


def policy_text(classes: dict[Network, int], upstreams: list[Network], head: str = "") -> str:
    text = f"upstreams = {[str(p) for p in upstreams]}\n{head}"
    for index in (1, 2):
        own = [str(p) for p, i in classes.items() if i == index]
        text += f'[[class]]\nname = "c{index}"\nprefixes = {own}\n'
    return text


def longest(prefixes: Any, address: Any) -> Any:
    """The longest of the prefixes that hold the address, as the trie finds it."""
    found = [p for p in prefixes if address in p]
    return max(found, key=lambda p: p.prefixlen, default=None)


@given(st.dictionaries(NETWORKS, st.integers(1, 2)), st.lists(NETWORKS))
def test_the_longest_prefix_tells_both_the_class_and_the_upstream(
    classes: dict[Network, int], upstreams: list[Network]
) -> None:
    compiled = compile_policy(parse_policy(policy_text(classes, upstreams)))
    assert set(compiled.prefixes) == set(classes) | set(upstreams)
    for prefix in compiled.prefixes:
        for address in (prefix[0], prefix[-1]):
            found = longest(compiled.prefixes, address)
            index = classes.get(longest(classes, address), 0)
            is_upstream = any(address in one for one in upstreams)
            assert compiled.prefixes[found] == abi.pack_prefix_value(
                index, found.prefixlen, is_upstream
            )


@given(
    st.dictionaries(NETWORKS, st.integers(1, 2)),
    st.lists(NETWORKS),
    st.sampled_from([(32, 64), (26, 62), (28, 32)]),
)
def test_a_class_may_be_remembered_unless_hosts_of_one_source_differ_in_it(
    classes: dict[Network, int], upstreams: list[Network], bits: tuple[int, int]
) -> None:
    head = f"[sources]\nipv4_prefix = {bits[0]}\nipv6_prefix = {bits[1]}\n"
    flags = compile_policy(parse_policy(policy_text(classes, upstreams, head))).policy.flags
    for version, length, some, long in (
        (4, bits[0], abi.POLICY_PREFIXES_IPV4, abi.POLICY_LONG_IPV4),
        (6, bits[1], abi.POLICY_PREFIXES_IPV6, abi.POLICY_LONG_IPV6),
    ):
        assert bool(flags & some) == any(p.version == version for p in [*classes, *upstreams])
        differ = False
        for prefix, index in classes.items():
            if prefix.version == version and prefix.prefixlen > length:
                outer = [p for p in classes if p != prefix and p.version == version]
                outer = [p for p in outer if prefix.subnet_of(p)]
                cover = max(outer, key=lambda p: p.prefixlen, default=None)
                differ = differ or index != (classes[cover] if cover else 0)
        assert bool(flags & long) == differ


def test_many_upstreams_are_refused_by_the_check_with_the_remedy_and_prefixes_are_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / "ntpguard.toml"
    many = [f"2001:db8:{n:x}::/48" for n in range(30_000)]
    (tmp_path / "many.txt").write_text("\n".join(many))
    file.write_text('[[class]]\nname = "many"\nprefixes_file = "many.txt"\n')
    assert read_policy(file).classes[1].prefix_count == 30_000
    file.write_text(f"upstreams = {many}\n")
    with pytest.raises(PolicyError) as caught:
        read_policy(file)
    (error,) = caught.value.errors
    assert error.startswith(f"{file}:1: upstreams: 30000 items make the policy's text too")
    assert error.endswith("use shorter prefixes that cover several")


def bound_grants(limit: abi.Bound, tat: int, now: int, high: bool) -> tuple[int, int]:
    """(granted at once, new tat): a shared bound as its words are defined."""
    interval, tolerance = limit.limit.emission_interval, limit.limit.burst_tolerance
    ahead = max(0, tat - now)
    if (1 if high else 2) * ahead > tolerance:
        return 0, tat
    batch = limit.batch
    if (1 if high else 2) * (ahead + (batch - 1) * interval) > tolerance:
        batch = 1
    return batch, now + ahead + batch * interval


@pytest.mark.parametrize("rate", [Fraction(1, 86400), Fraction(1), Fraction(7), Fraction(2500), Fraction(10**7)])  # fmt: skip
def test_a_shared_bound_of_any_rate_serves_both_priorities(rate: Fraction) -> None:
    one = bound(rate, Fraction(1, 10))
    interval = one.limit.emission_interval
    assert bound_grants(one, 0, 0, high=False)[0] == one.batch
    tat, low, high = 0, 0, 0
    for step in range(4000):  # low asks ten times as often as the rate; high, less often than it
        now = step * interval // 10
        granted, tat = bound_grants(one, tat, now, high=False)
        low += granted
        if step % 17 == 0:
            granted, tat = bound_grants(one, tat, now, high=True)
            assert granted, "low priority leaves nothing"
            high += granted
    assert low > 0 and high > 200
    burst = one.limit.burst_tolerance // one.limit.emission_interval + 1
    assert low + high <= burst + 400 + one.batch


@pytest.mark.parametrize("rate", [7, 2500, 120_000, 900_000, 10**7])
def test_a_shared_bound_grants_the_rate_that_the_policy_says(rate: int) -> None:
    second = 10**9 << abi.GCRA_TAT_SHIFT >> abi.GCRA_UNIT_SHIFT
    assert (
        0.9998 * rate < second / bound(Fraction(rate), Fraction(1)).limit.emission_interval <= rate
    )


def test_a_bound_that_is_off_has_no_interval() -> None:
    policy = compile_policy(parse_policy('[answers]\nrate = "off"\n[odd]\nrate = "off"\n')).policy
    assert policy.answers.emission_interval == policy.odd.emission_interval == 0
    assert policy.bounds[abi.BOUND_CEILING].limit.emission_interval == 0
    assert policy.bounds[abi.BOUND_CEILING].batch == 1


def test_a_ceiling_has_the_burst_of_10_milliseconds() -> None:
    text = (
        '[ceiling]\nrate = "50000/second"\n[answers]\nrate = "200/second"\n[odd]\nrate = "1/minute"'
    )
    policy = compile_policy(parse_policy(text)).policy
    ceiling = policy.bounds[abi.BOUND_CEILING]
    assert ceiling.limit.emission_interval == 20 * 64_000  # 20 us
    assert ceiling.limit.burst_tolerance == 499 * ceiling.limit.emission_interval
    assert ceiling.batch == 50
    assert policy.answers.burst_tolerance == 19 * policy.answers.emission_interval
    assert policy.odd.burst_tolerance == 0 < policy.odd.emission_interval


def test_no_limit_is_longer_than_a_word_can_tell() -> None:
    text = "\n".join(
        f'[{section}]\n{name} = "1/day"'
        for section, name in (("kod", "max_rate"), ("newcomers", "rate"), ("ceiling", "rate"), ("answers", "rate"), ("odd", "rate"))
    )  # fmt: skip
    policy = compile_policy(parse_policy(text + '\n[limit]\nleak_max = "1/day"\n')).policy
    limits = [one.limit for one in policy.bounds] + [policy.leak_shard, policy.answers, policy.odd]
    for limit in limits:
        assert limit.emission_interval > 0
        units = (limit.burst_tolerance + limit.emission_interval) >> abi.GCRA_TAT_SHIFT
        assert units <= 2 * LONGEST_TOLERANCE


@pytest.mark.parametrize(("seconds", "units"), [(3, 1), (4, 2), (300, 94), (2700, 839)])
def test_four_well_spaced_requests_span_established_after(seconds: int, units: int) -> None:
    assert spacing(seconds) == units < 1 << abi.AUX_MARK_BITS
    assert 3 * units << abi.MARK_UNIT_SHIFT >= seconds * NANOSECONDS
    text = f'[newcomers]\nestablished_after = "{seconds}s"'
    assert compile_policy(parse_policy(text)).policy.established_spacing == units


def compiled_signature(text: str) -> tuple[bytes, bytes, abi.Signature]:
    one = compile_policy(parse_policy(f'[[signature]]\nname = "x"\n{text}')).policy.signature[0]
    value, mask = bytes(one.value), bytes(one.mask)
    assert bytes(v & ~m & 0xFF for v, m in zip(value, mask, strict=True)) == bytes(48)
    return value, mask, one


# protocol.md, section 4: the header as TOML, value and mask of its first bytes
SHAPES = {
    "fortigate": (
        'header = "?b 00 04 fa 00010000 00010000 00000000 0000000000000000 0000000000000000 0000000000000000"\nfraction = "microseconds"',
        "0b0004fa0001000000010000" + "00" * 28,
        "0fffffffffffffffffffffff" + "ff" * 28,
        abi.FRACTION_MICROSECONDS,
        0,
    ),
    "timesyncd": (
        f'header = "23 {"00" * 39}"\nfraction = "nanoseconds"',
        "23" + "00" * 39,
        "ff" * 40,
        abi.FRACTION_NANOSECONDS,
        0,
    ),
    "nixie clock": (
        'source_port = 1337\nheader = "e3 00 06 ec 00000000 00000000 314e3134"',
        "e30006ec" + "00" * 8 + b"1N14".hex(),
        "ff" * 16,
        abi.FRACTION_ANY,
        1337,
    ),
    "ios-ntp": (
        'header = "23 00 04 FA 0001.... 0001...."',
        "230004fa0001000000010000",
        "ffffffffffff0000ffff0000",
        abi.FRACTION_ANY,
        0,
    ),
}


@pytest.mark.parametrize(("text", "value", "mask", "fraction", "port"), SHAPES.values(), ids=SHAPES.keys())  # fmt: skip
def test_a_known_misuse_compiles_to_the_bytes_of_its_shape(
    text: str, value: str, mask: str, fraction: int, port: int
) -> None:
    found, found_mask, one = compiled_signature(text)
    assert (found.hex(), found_mask.hex()) == (value.ljust(96, "0"), mask.ljust(96, "0"))
    assert one.fraction == fraction
    assert bytes(abi.Signature.from_buffer_copy(one))[96:98] == port.to_bytes(2, "big")
    assert one.flags == (abi.SIGNATURE_SOURCE_PORT if port else 0)


@pytest.mark.parametrize(
    ("header", "value", "mask"),
    [
        ("e3", "e3", "ff"),
        ("?3 .. 06", "030006", "0f00ff"),
        ("3?.4", "3004", "f00f"),
        ("..", None, None),
        ("E3 ?? ..", "e3", "ff"),
        ("e3 0?", "e300", "fff0"),
    ],
)
def test_a_masked_digit_is_not_compared(header: str, value: str | None, mask: str | None) -> None:
    text = f'header = "{header}"'
    if value is None or mask is None:
        with pytest.raises(PolicyError):
            compiled_signature(text)
        return
    found, found_mask, _ = compiled_signature(text)
    assert (found.hex(), found_mask.hex()) == (value.ljust(96, "0"), mask.ljust(96, "0"))


def signatures(*kinds: str) -> Compiled:
    text = "".join(
        f'[[signature]]\nname = "s{number}"\nsource_port = {number + 1}\n{kind}\n'
        for number, kind in enumerate(kinds)
    )
    return compile_policy(parse_policy(text))


def test_signatures_for_always_come_first_and_else_the_files_order_holds() -> None:
    always = 'when = "always"'
    compiled = signatures("", always, 'mode = "observe"', f'{always}\nmode = "observe"', "")
    policy = compiled.policy
    assert compiled.signatures == ("s1", "s3", "s0", "s2", "s4")
    assert (policy.signatures_always, policy.signatures) == (2, 5)
    ports = [int.from_bytes(one.source_port.to_bytes(2, "little"), "big") for one in policy.signature[:5]]  # fmt: skip
    assert ports == [2, 4, 1, 3, 5]
    observed = [bool(one.flags & abi.SIGNATURE_OBSERVE) for one in policy.signature[:5]]
    assert observed == [False, True, False, True, False]


def test_sixteen_signatures_fit() -> None:
    assert signatures(*[""] * 16).policy.signatures == abi.SIGNATURES
    assert compile_policy(DEFAULT).policy.signatures == 0


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ('header = "e3 00 06 ec 00000000"\nwhen = "always"', False),
        ('header = "e3 00 06 ec 0000000?"\nwhen = "always"', True),
        ('header = "e3 00 06 ec"\nwhen = "always"', True),
        ('source_port = 1337\nwhen = "always"', True),
        ('header = "e3 00 06 ec"\nwhen = "always"\nmode = "observe"', False),
        ('header = "e3 00 06 ec"', False),
    ],
)
def test_a_short_shape_that_always_blocks_is_warned_of(text: str, warned: bool) -> None:
    warnings = parse_policy(f'[[signature]]\nname = "x"\n{text}', "p").warnings
    assert [one.partition(" blocks")[0] for one in warnings] == ["p:4: signature.when:"] * warned


def test_upstreams_need_memory_too_and_one_of_a_class_none_more() -> None:
    class_text = '[[class]]\nname = "a"\nprefixes = ["203.0.113.0/24"]\n'
    one = memory_bytes(parse_policy(class_text), cpus=2)
    same = memory_bytes(parse_policy('upstreams = ["203.0.113.0/24"]\n' + class_text), cpus=2)
    more = memory_bytes(parse_policy('upstreams = ["203.0.113.1"]\n' + class_text), cpus=2)
    assert one == same
    assert more["prefixes"] == 2 * one["prefixes"]
