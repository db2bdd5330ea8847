"""What is told of a policy without a guard: check, describe, signatures; and how files are read."""

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ntpguard.cli import main
from ntpguard.policy.check import DEFAULT, parse_policy, read_policy
from ntpguard.policy.describe import describe, rate_in_words, render
from ntpguard.policy.kinds import PrefixKind, Rate


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    return result.exit_code, result.output


def checked(file: Path) -> Any:
    code, output = run("-o", "json", "policy", "check", file)
    assert code == 0, output
    return json.loads(output)["data"]


def described(text: str, contact: str | None = None) -> str:
    return "\n".join(render(describe(parse_policy(text), contact)))


def test_the_check_tells_every_setting_that_is_not_the_default(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        'upstreams = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "2001:db8::/64"]\n'
        '[newcomers]\nestablished_after = "10m"\n[ceiling]\nrate = "5000/second"\n'
        '[answers]\nrate = "off"\n[odd]\nrate = "10/second"\n'
        '[[signature]]\nname = "nixie"\nsource_port = 1337\n'
    )
    code, output = run("policy", "check", file)
    assert code == 0
    for line in (
        "signatures nixie",
        "upstreams 198.51.100.1/32, 198.51.100.2/32, 198.51.100.3/32 and 1 more none",
        "newcomers.established_after 10m 5m",
        "ceiling.rate 5000/second off",
        "answers.rate off 1000/second",
        "odd.rate 10/second 1000/second",
    ):
        assert line in [" ".join(one.split()) for one in output.splitlines()], output
    data = checked(file)
    assert data["signatures"] == ["nixie"]
    assert data["settings"] == {
        "upstreams": 4,
        "newcomers.established_after": "10m",
        "ceiling.rate": "5000/second",
        "answers.rate": "off",
        "odd.rate": "10/second",
    }
    file.write_text("")
    assert checked(file)["settings"] == {}


@pytest.mark.parametrize(
    ("prefix", "warned"),
    [("0.0.0.0/0", True), ("128.0.0.0/7", True), ("11.0.0.0/8", False), ("2000::/15", True)],
)
def test_upstreams_that_are_much_of_the_internet_are_warned_of(prefix: str, warned: bool) -> None:
    warnings = parse_policy(f'upstreams = ["198.51.100.1", "{prefix}"]', "p").warnings
    assert len(warnings) == warned
    if warned:
        assert warnings[0].startswith(f"p:1: upstreams: {prefix} is much of the internet")


BLOCKED = """
upstreams = ["198.51.100.9", "203.0.113.8", "2001:db8::/64"]
[[class]]
name = "world"
prefixes = ["0.0.0.0/0"]
action = "block"
"""
SERVED = '[[class]]\nname = "ours"\nprefixes = ["203.0.113.0/24"]\n'


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        ("", ["198.51.100.9/32", "203.0.113.8/32"]),
        (SERVED, ["198.51.100.9/32"]),
        ('mode = "observe"\n', []),
    ],
)
def test_upstreams_whose_answers_a_class_drops_are_warned_of(more: str, warned: list[str]) -> None:
    assert parse_policy(BLOCKED + more, "p").warnings == tuple(
        f'p:2: upstreams: {one} is in class "world", which blocks: its answers are dropped too: '
        "name it in a class that does not block"
        for one in warned
    )


def test_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "banned.txt").write_bytes(b"\xef\xbb\xbf203.0.113.0/24\r\n")
    file = tmp_path / "p.toml"
    file.write_bytes(
        b'\xef\xbb\xbfmode = "enforce"\r\n[[class]]\r\nname = "banned"\r\n'
        b'prefixes_file = "banned.txt"\r\nrate = 3\r\n'
    )
    code, output = run("policy", "check", file)
    assert code == 3
    assert output.startswith(f"ntpguard: {file}:5: class.rate: must be a rate")
    file.write_bytes(file.read_bytes().replace(b"rate = 3\r\n", b""))
    assert [str(one) for one in read_policy(file).classes[1].prefixes] == ["203.0.113.0/24"]


@pytest.mark.parametrize("command", ["policy check", "policy show", "policy describe", "up eth9 --policy"])  # fmt: skip
def test_a_policy_file_without_a_name_is_told_so(command: str) -> None:
    assert run(*command.split(), "") == (
        2,
        "ntpguard: no policy file named (got ''): name one, like ntpguard.toml\n",
    )


@given(
    st.tuples(
        st.ip_addresses().map(str) | st.text("0123456789abcdef:.", max_size=20),
        st.integers(0, 130).map("/{}".format) | st.text("0123456789./ +_:x٣", max_size=6),
    ).map("".join)
)
def test_a_prefix_is_read_as_the_standard_library_reads_it(text: str) -> None:
    try:
        wanted = ipaddress.ip_network(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"must be a prefix|has host bits set"):
            PrefixKind().read(text)
    else:
        assert PrefixKind().read(text) == wanted


def test_rates_are_told_as_people_say_them() -> None:
    assert rate_in_words(Rate(60, "minute")) == "60 requests a minute"
    assert rate_in_words(Rate(1, "hour")) == "1 request an hour"


def test_the_default_policy_is_described_with_what_a_client_needs_to_know() -> None:
    text = "\n".join(render(describe(DEFAULT, "ntp@example.net"), markdown=True))
    for part in (
        "# Access policy of this NTP server\n\n## What a client may ask\n\n- At present nothing",
        "60 requests a minute on average, up to 32 at once (UDP port 123)",
        "one IPv4 address or one IPv6 /64 network",
        "about 1 in 4 is answered anyway (in all, no more than 16000 requests a second)",
        "at most one in 16 seconds, and none any more after 4 that",
        "Ask every 64 seconds, or less often",
        "8 requests 2 seconds apart at the start (iburst) are fine",
        "https://www.ntppool.org/vendors.html",
        "## Contact\n\n- ntp@example.net",
    ):
        assert part in text
    assert "Other limits" not in text
    assert "Contact" not in "\n".join(render(describe(DEFAULT)))


def test_only_what_the_policy_does_is_described() -> None:
    text = described(
        'mode = "enforce"\nports = [123, 1123]\n[sources]\nipv4_prefix = 24\nipv6_prefix = 56\n'
        '[limit]\nrate = "20/hour"\nburst = 7\nleak = "1/1"\n[kod]\nenabled = false\n'
        '[ceiling]\nrate = "5000/second"\n'
        '[[class]]\nname = "near"\nprefixes = ["198.51.100.0/24"]\nrate = "10/second"\nburst = 9\n'
        'leak = "3/8"\nkod = true\nmode = "observe"\n'
        '[[class]]\nname = "own"\nprefixes = ["203.0.113.1"]\naction = "exempt"\ncontrol = true\n'
        '[[class]]\nname = "bad"\naction = "block"\nprefixes = '
        + str([f"203.0.113.{n}" for n in range(10, 30)])
        + '\n[[signature]]\nname = "seen"\nsource_port = 7\nmode = "observe"\n'
        '[[signature]]\nname = "nixie"\nsource_port = 1337\n'
        '[[signature]]\nname = "all"\nsource_port = 1338\nwhen = "always"\nmode = "enforce"\n'
    )
    for part in (
        "Each source: 20 requests an hour on average, up to 7 at once (UDP port 123, 1123).",
        "one IPv4 /24 or one IPv6 /56 network",
        "All sources together: 5000 requests a second",
        "near (198.51.100.0/24): 10 requests a second on average, up to 9 at once; of those over "
        "the limit, about 3 in 8 are answered anyway; told by a Kiss-o'-Death packet (counted "
        "only at present, not enforced).",
        "own (203.0.113.1/32): no limit; may send queries of modes 6 and 7.",
        "bad (20 networks): not served: every request is dropped.",
        "all are answered anyway",
        "dropped when they are over the limit: nixie.",
        "dropped always: all.",
        "Ask every 256 seconds, or less often",
    ):
        assert part in text, text
    for part in ("At present nothing", "code RATE (RFC", "iburst", "seen"):
        assert part not in text, text


@pytest.mark.parametrize(("burst", "fine"), [(7, False), (8, True)])
def test_iburst_is_called_fine_only_where_it_passes(burst: int, fine: bool) -> None:
    text = described(f'[limit]\nrate = "1/hour"\nburst = {burst}\n')
    assert ("iburst" in text) == fine
    assert "Ask every 4096 seconds" in text


def test_the_library_of_signatures_can_be_appended_to_a_policy_file(tmp_path: Path) -> None:
    code, output = run("policy", "signatures")
    assert code == 0
    file = tmp_path / "p.toml"
    file.write_text('mode = "enforce"\n[limit]\nburst = 40\n' + output)
    names = checked(file)["signatures"]
    assert names[:2] == ["fortigate-v3", "fortigate-v4"]
    found = json.loads(run("-o", "json", "policy", "signatures")[1])["data"]
    assert (found["names"], found["toml"]) == (names, output)
    code, output = run("policy", "signatures", "--help")
    assert "ntpguard policy signatures >> /etc/ntpguard/ntpguard.toml" in output


@pytest.mark.parametrize("command", ["check", "show", "diff", "apply", "describe", "signatures"])
def test_every_command_shows_how_it_is_used(command: str) -> None:
    code, output = run("policy", command, "--help")
    assert code == 0 and f"Example: ntpguard policy {command}" in output
