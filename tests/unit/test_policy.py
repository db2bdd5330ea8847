"""The policy file: what it accepts, how it complains, what it compiles to."""

import ipaddress
from fractions import Fraction
from pathlib import Path

import pytest

from ntpguard import abi
from ntpguard.errors import PolicyError
from ntpguard.policy.check import DEFAULT, parse_policy, read_policy
from ntpguard.policy.compile import buckets_for, compile_policy, memory_bytes
from ntpguard.policy.render import to_toml

FULL = """
interfaces = ["eth0", "eth1"]
mode = "enforce"
ports = [123, 1123]
destinations = ["198.51.100.1", "2001:db8::1"]
upstreams = ["203.0.113.123", "2001:db8:5::/48"]
xdp = "native"
on_exit = "detach"

[sources]
capacity = 4096
ipv4_prefix = 24
ipv6_prefix = 56

[limit]
rate = "2/second"
burst = 16
leak = "1/8"
leak_max = "5000/second"

[kod]
enabled = false
interval = "2m"
patience = 2
flood = 10
max_rate = "10/second"

[newcomers]
rate = "500/second"
established_after = "90s"

[ceiling]
rate = "50000/second"

[answers]
rate = "off"

[odd]
rate = "100/second"

[[class]]
name = "campus"
prefixes = ["198.51.100.0/24", "2001:db8::/32"]
rate = "10/second"
burst = 100
kod = true
control = true
mode = "observe"

[[class]]
name = "banned"
prefixes = ["203.0.113.0/24"]
action = "block"

[[signature]]
name = "nixie-clock"
source_port = 1337
header = "e3 00 06 ec 00000000 00000000 314e3134"

[[signature]]
name = "fortigate"
header = "?b 00 04 fa 00010000 00010000"
fraction = "microseconds"
when = "always"
mode = "observe"
"""

RATE = 'a rate like "60/minute" (per second, minute, hour or day), more than 0 and at most'

LONG = "00" * 49

HEADERS = {
    "e3 0g 06": 'byte 2: "g" of "0g" is no hex digit, "." or "?"',
    "e30006 e": 'byte 4: "e" ends with half a byte',
    "e3 000": 'byte 3: "000" ends with half a byte',
    "e3 0O 06": 'byte 2: "O" of "0O" is no hex digit, "." or "?": did you mean "e3 00 06"?',
    "0xe3 0x00": 'byte 1: "x" of "0xe3" is no hex digit, "." or "?": did you mean "e3 00"?',
    "e3:00:06": 'byte 2: ":" of "e3:00:06" is no hex digit, "." or "?": did you mean "e3 00 06"?',
    "e3 ** 06": 'byte 2: "*" of "**" is no hex digit, "." or "?": did you mean "e3 .. 06"?',
    ".. ?? ..": "compares no byte: give at least one hex digit",
    " ": 'must be hex like "e3 00 06 ec" of 1 to 48 bytes, with ".." for a byte that may be any, "?" for a digit',
}

COMPLAINTS = [
    ('mode = "enforced"', 'p:1: mode: must be "enforce" or "observe" or "off" (got \'enforced\')'),
    ('mod = "enforce"', 'p:1: mod: unknown setting: did you mean "mode"?'),
    ("ports = []", "p:1: ports: must be a list of 1 to 4 ports (got [])"),
    ("ports = [0]", "p:1: ports: must be a whole number from 1 to 65535 (got 0)"),
    ('destinations = ["x"]', 'p:1: destinations: must be an IP address like "198.51.100.1" or "2001:db8::1" (got \'x\')'),
    ("[sources]\ncapacity = 3", "p:2: sources.capacity: must be a whole number from 1024 to 16777216 (got 3)"),
    ("[sources]\ncapacity = true", "p:2: sources.capacity: must be a whole number from 1024 to 16777216 (got True)"),
    ("[sources]\nipv6_prefix = 65", "p:2: sources.ipv6_prefix: must be a whole number from 16 to 64 (got 65)"),
    ("[limit]\nrate = 60", 'p:2: limit.rate: must be RATE "10000/second" (got 60)'),
    ('[limit]\nrate = "0/minute"', 'p:2: limit.rate: must be RATE "10000/second" (got \'0/minute\')'),
    ('[limit]\n\nrat = "1/hour"', 'p:3: limit.rat: unknown setting: did you mean "rate"?'),
    ('[limit]\nleak = "0/4"', 'p:2: limit.leak: must be a fraction from "1/1024" to "1/1" (got \'0/4\')'),
    ('[limit]\nrate = "10000/second"', "p:1: limit.burst: burst 32 of class default: must be at least 101 for 10000/second: the clock has steps of up to 10 ms"),
    ('[limit]\nrate = "180/second"\nburst = 2', "p:3: limit.burst: burst 2 of class default: must be at least 3 for 180/second: the clock has steps of up to 10 ms"),
    ('[limit]\nrate = "1/day"\nburst = 1000', "p:3: limit.burst: burst 1000 of class default: must be at most 834 for 1/day: more would take years to earn"),
    ('[[class]]\nname = "a"\nprefixes_file = "a\\u0000b"', "p:3: class.prefixes_file: must be a file name (got 'a\\x00b')"),
    ('[kod]\ninterval = "16"', 'p:2: kod.interval: must be a time like "16s", "5m" or "1h", from "1s" to "1h" (got \'16\')'),
    ('[limit]\nrate = "60/min"', 'p:2: limit.rate: must be RATE "10000/second": did you mean "60/minute"? (got \'60/min\')'),
    ('[limit]\nrate = "5 per sec"', 'p:2: limit.rate: must be RATE "10000/second": did you mean "5/second"? (got \'5 per sec\')'),
    ('[ceiling]\nrate = "none"', 'p:2: ceiling.rate: must be "off" or RATE "10000000/second": did you mean "off"? (got \'none\')'),
    ('[newcomers]\nestablished_after = "2s"', 'p:2: newcomers.established_after: must be a time like "16s", "5m" or "1h", from "3s" to "45m" (got \'2s\')'),
    ('[newcomers]\nestablished_after = "1h"', 'p:2: newcomers.established_after: must be a time like "16s", "5m" or "1h", from "3s" to "45m" (got \'1h\')'),
    ('[limit]\nmode = "enforce"', 'p:2: limit.mode: unknown setting: it belongs before the first [section]'),
    ('capacity = 5000', 'p:1: capacity: unknown setting: it belongs in [sources]'),
    ('upstream = []', 'p:1: upstream: unknown setting: did you mean "upstreams"?'),
    ('[answer]\nrate = "off"', 'p:1: answer: unknown setting: did you mean "answers"?'),
    ('limit = 3', "p:1: limit: must be a table, [limit] (got 3)"),
    ('class = "a"', "p:1: class: must be tables, [[class]] (got 'a')"),
    ('[signature]\nname = "a"', "p:1: signature: must be tables, [[signature]] (got {'name': 'a'})"),
    ('[[signature]]\nname = "a"', "p:1: signature: a signature needs header, source_port or fraction"),
    ('[[signature]]\nname = "A"\nsource_port = 1', "p:2: signature.name: must be 1 to 32 of a-z, 0-9, - and _, the first a letter or digit (got 'A')"),
    ('[[signature]]\nname = "a"\nsource_port = 1\n[[signature]]\nname = "a"\nsource_port = 2', 'p:5: signature.name: "a" is taken: choose another'),
    ('[[signature]]\nname = "a"\nsource_port = 0', "p:3: signature.source_port: must be a whole number from 1 to 65535 (got 0)"),
    ('[[signature]]\nname = "a"\nsport = 1\nfraction = "microseconds"', 'p:3: signature.sport: unknown setting: did you mean "source_port"?'),
    ('[[signature]]\nname = "a"\nfraction = "micro"', 'p:3: signature.fraction: must be "microseconds" or "nanoseconds" (got \'micro\')'),
    ('[[signature]]\nname = "a"\nsource_port = 1\nwhen = "sometimes"', 'p:4: signature.when: must be "excess" or "always" (got \'sometimes\')'),
    ('[[signature]]\nname = "a"\nsource_port = 1\naction = "drop"', 'p:4: signature.action: must be "block" (got \'drop\')'),
    (f'[[signature]]\nname = "a"\nheader = "{LONG}"', f"p:3: signature.header: is 49 bytes: an NTP header has 48 (got '{LONG[:36]}...)"),
    *((f'[[signature]]\nname = "a"\nheader = "{header}"', f"p:3: signature.header: {what} (got '{header}')") for header, what in HEADERS.items()),
    ("".join(f'[[signature]]\nname = "s{n}"\nsource_port = 1\n' for n in range(17)), "p:49: signature: at most 16 are possible (got 17)"),
    (f"destinations = {['198.51.100.1'] * 257}", "p:1: destinations: must be a list of at most 256 addresses (got ['198.51.100.1', '198.51.100.1', '198...)"),
    ("[limit]\nrate = 0x" + "f" * 5000, 'p:2: limit.rate: must be RATE "10000/second" (got a number of too many digits)'),
    ("ports = [0x" + "f" * 5000 + "]", "p:1: ports: must be a whole number from 1 to 65535 (got a number of too many digits)"),
    ("[limit", "p:1: not TOML: Expected ']' at the end of a table declaration"),
    ('[[class]]\nprefixes = []', "p:1: class.name: must be 1 to 32 of a-z, 0-9, - and _, the first a letter or digit (missing)"),
    ('[[class]]\nname = "a"', "p:1: class: a class needs prefixes or prefixes_file"),
    ('[[class]]\nname = "a"\nprefixes = ["198.51.100.7/24"]', 'p:3: class.prefixes: has host bits set: did you mean "198.51.100.0/24"? (got \'198.51.100.7/24\')'),
    ('[[class]]\nname = "a"\nprefixes = []\n[[class]]\nname = "a"\nprefixes = []', 'p:5: class.name: "a" is taken: choose another'),
    ('[[class]]\nname = "a"\nprefixes = ["::/0"]\n[[class]]\nname = "b"\nprefixes = ["::/0"]', 'p:6: class.prefixes: "::/0" is in class "a" already: keep one of the two'),
    ('[[class]]\nname = "a"\nprefixes_file = "none"', "p:3: class.prefixes_file: cannot read none: No such file or directory"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "complaint"), COMPLAINTS, ids=lambda x: x[:40])
def test_a_mistake_is_named_with_its_line_and_its_remedy(text: str, complaint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p")
    assert caught.value.errors == [complaint.replace("RATE", RATE)]


def test_all_mistakes_are_told_in_one_run_in_the_order_of_their_lines() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy('mode = "x"\n[limit]\nburst = 0\n[sources]\ncapacity = 1\ncolour = 1\n', "p")
    assert [one.split(": ")[0] for one in caught.value.errors] == ["p:1", "p:3", "p:5", "p:6"]


def test_without_a_mode_line_nothing_is_ever_dropped() -> None:
    assert DEFAULT.mode == "observe"


def test_the_defaults_are_those_of_the_design() -> None:
    default = DEFAULT.classes[0]
    assert (str(default.rate), default.burst, default.leak) == ("60/minute", 32, Fraction(1, 4))
    assert DEFAULT.capacity == 1_048_576
    assert (DEFAULT.kod_interval, DEFAULT.kod_patience, DEFAULT.kod_flood) == (16, 4, 64)


@pytest.mark.parametrize("text", ["", FULL])
def test_a_policy_written_back_reads_as_the_same_policy(text: str) -> None:
    policy = parse_policy(text)
    assert parse_policy(to_toml(policy)) == policy


def test_a_class_inherits_what_it_does_not_state() -> None:
    campus, banned = parse_policy(FULL).classes[1:]
    assert (campus.leak, campus.burst, campus.kod) == (Fraction(1, 8), 100, True)
    assert (banned.rate, banned.action, banned.kod) == (
        parse_policy(FULL).classes[0].rate,
        "block",
        False,
    )


def test_prefixes_come_from_a_file_too_and_its_mistakes_have_its_lines(tmp_path: Path) -> None:
    (tmp_path / "banned.txt").write_text("# comment\n203.0.113.0/24\n\n198.51.100.9 # a host\n")
    file = tmp_path / "ntpguard.toml"
    file.write_text('[[class]]\nname = "banned"\nprefixes_file = "banned.txt"\naction = "block"\n')
    assert [str(p) for p in read_policy(file).classes[1].prefixes] == [
        "198.51.100.9/32",
        "203.0.113.0/24",
    ]
    (tmp_path / "banned.txt").write_text("203.0.113.0/24\n203.0.113.300\n")
    with pytest.raises(PolicyError) as caught:
        read_policy(file)
    assert caught.value.errors[0].startswith(f"{tmp_path}/banned.txt:2: ")


def test_the_emission_interval_is_rounded_up_so_that_the_rate_is_never_exceeded() -> None:
    rule = compile_policy(DEFAULT).policy.classes[0]
    unit = rule.limit.emission_interval >> abi.GCRA_TAT_SHIFT
    assert (unit - 1) * 1024 < 1_000_000_000 <= unit * 1024
    assert rule.limit.burst_tolerance == 31 * rule.limit.emission_interval
    assert rule.leak == 2**30


@pytest.mark.parametrize(("capacity", "buckets"), [(1024, 512), (1025, 1024), (1_048_576, 524_288)])
def test_the_table_is_loaded_to_a_half_at_most(capacity: int, buckets: int) -> None:
    assert buckets_for(capacity) == buckets


def test_a_source_costs_64_bytes() -> None:
    assert memory_bytes(DEFAULT, cpus=2)["sources"] == 64 * DEFAULT.capacity


def test_flags_say_which_prefixes_there_are_and_which_cut_a_source() -> None:
    compiled = compile_policy(parse_policy(FULL))
    assert compiled.policy.flags == (
        abi.POLICY_PREFIXES_IPV4 | abi.POLICY_PREFIXES_IPV6 | abi.POLICY_DESTINATIONS
    )
    banned = ipaddress.ip_network("203.0.113.0/24")
    assert compiled.prefixes[banned] == abi.pack_prefix_value(2, 24)
    cut = parse_policy('[[class]]\nname = "a"\nprefixes = ["2001:db8::1/128"]')
    assert compile_policy(cut).policy.flags & abi.POLICY_LONG_IPV6
    assert "shares that source's count" in cut.warnings[0]
