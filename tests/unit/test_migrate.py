"""Other daemons' configuration as a policy: what is carried over, what is noted, nothing that breaks."""

import json
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ntpguard.cli import main
from ntpguard.errors import UsageError
from ntpguard.migrate import KINDS, chrony, migrated, ntp
from ntpguard.migrate.draft import Draft
from ntpguard.policy.check import parse_policy
from ntpguard.policy.model import Policy
from tests import NTPGUARD

PEERS = Path(__file__).parents[2] / "build/peers"
DEBIANS = [
    PEERS / "usr/share/chrony/chrony.conf",
    *sorted((PEERS / "usr/share/doc/chrony/examples").glob("chrony.conf.example*")),
    PEERS / "etc/ntpsec/ntp.conf",
]


def policy(text: str, kind: str | None = None) -> Policy:
    return parse_policy(migrated([("f.conf", text)], kind).toml())


def notes(text: str, kind: str | None = None) -> dict[int, str]:
    return {one.line.number: one.why for one in migrated([("f.conf", text)], kind).notes}


def classes(text: str) -> dict[str, tuple[str, bool, bool]]:
    return {
        str(prefix): (one.action, one.kod, one.control)
        for one in policy(text).classes[1:]
        for prefix in one.prefixes
    }


@pytest.mark.parametrize("file", DEBIANS, ids=lambda path: path.name)
def test_debians_own_files_come_to_a_policy_that_only_observes(file: Path) -> None:
    found = policy(file.read_text())
    assert (found.mode, found.interfaces) == ("observe", ())


@pytest.mark.parametrize(
    ("line", "rate", "burst", "leak", "kod"),
    [
        ("ratelimit", "450/hour", 8, Fraction(1, 4), False),
        ("ratelimit interval 1 burst 16 leak 3", "30/minute", 16, Fraction(1, 8), False),
        ("RateLimit Interval -4 kod 2", "16/second", 8, Fraction(1, 4), True),
        ("ratelimit interval 12 burst 1 leak 1", "22/day", 1, Fraction(1, 2), False),
        ("ratelimit interval -19 burst 255", "10000/second", 255, Fraction(1, 4), False),
    ],
)
def test_chronys_ratelimit_is_the_limit(
    line: str, rate: str, burst: int, leak: Fraction, kod: bool
) -> None:
    default = policy(f"! a comment\n{line}\n").classes[0]
    assert (str(default.rate), default.burst, default.leak, default.kod) == (rate, burst, leak, kod)


def test_chronys_allow_and_deny_are_blocks_where_the_longest_prefix_says_so() -> None:
    assert classes(
        "allow\ndeny 198.51.100.0/24\nallow 198.51.100.7\ndeny 203.0\nallow all 203.0.113.0/24\n"
    ) == {
        "198.51.100.0/24": ("block", True, False),
        "198.51.100.7/32": ("limit", True, False),
        "203.0.0.0/16": ("block", True, False),
        "203.0.113.0/24": ("limit", True, False),
    }
    # `all` forgets what is below
    assert classes("deny 198.51.100.7\nallow all 198.51.100.0/24\n") == {}
    assert "still refused by the daemon" in notes("allow 198.51.100.0/24\n")[1]
    assert notes("allow\nallow 198.51.100.0/24\n") == {}


def test_what_chrony_has_besides_is_carried_over_or_named_with_its_line() -> None:
    text = (
        "port 1123\nbindaddress 198.51.100.1\nbindaddress ::1\nbinddevice eth1\n"
        "server 203.0.113.8 iburst\npool pool.example.net\ncmdratelimit\ninclude /etc/other.conf\n"
        "driftfile /var/lib/chrony/drift\nratelimit interval many\nport 0\n"
        "clientloglimit 1048576\nmaxntsconnections 5\nptpport 319\nratelimit kod 1\nport 70000\n"
    )
    found = policy(text)
    assert (found.ports, found.interfaces) == ((1123,), ("eth1",))
    assert [str(one) for one in found.destinations] == ["198.51.100.1"]
    assert [str(one) for one in found.upstreams] == ["203.0.113.8/32"]
    assert set(notes(text)) == {6, 7, 8, 10, 11, 12, 13, 14, 15, 16}
    assert policy("clientloglimit 2147483648\n").capacity == 16_777_216
    assert "/etc/other.conf" in migrated([("f.conf", text)]).toml()


@pytest.mark.parametrize("other", ["", "bindaddress ::\n"])
def test_addresses_of_one_family_alone_would_leave_the_other_unguarded(other: str) -> None:
    text = f"bindaddress 198.51.100.9\nbindaddress 198.51.100.1\n{other}"
    assert policy(text).destinations == ()
    assert "IPv6 is served on all addresses" in notes(text)[2]
    found = policy(f"{text}bindaddress 2001:db8::1\n").destinations
    assert [str(one) for one in found] == ["198.51.100.1", "2001:db8::1"]


def test_a_chronyd_that_serves_or_limits_nobody_is_told_at_the_top() -> None:
    client = migrated([("f.conf", "makestep 1 3\n")])
    assert ["serves nobody" in one for one in client.remarks] == [True, False]
    assert all(f"# {one}\n" in client.toml() for one in client.remarks)
    assert migrated([("f.conf", "allow\nratelimit\n")]).remarks == []


@pytest.mark.parametrize(
    ("text", "rate", "burst", "kod"),
    [
        ("restrict default limited kod\n", "10/minute", 10, True),
        ("restrict default limited\ndiscard average 4\n", "257/hour", 8, False),
        ("restrict default limited\ndiscard average 0\n", "1/second", 8, False),
        ("leapfile /var/lib/ntpsec/leap\nrestrict default kod limited\n", "1/second", 20, True),
        # ntpsec limits without being told
        ("limit average 2.5 burst 40 kod 0.5\n", "150/minute", 40, False),
        ("nts enable\nrestrict default kod nomodify\n", "1/second", 20, True),
    ],
)
def test_ntpds_and_ntpsecs_limited_is_the_limit(
    text: str, rate: str, burst: int, kod: bool
) -> None:
    default = policy(text).classes[0]
    assert default.kod == kod and default.burst == burst
    wanted = {"257/hour": "6172/day"}.get(rate, rate)
    assert str(default.rate) == wanted


def test_a_limit_that_a_policy_cannot_say_exactly_is_noted() -> None:
    assert "10000/second burst 101" in notes("limit average 20000 burst 20\n")[1]
    assert "22/day burst 8" in notes("ratelimit interval 12\n")[1]
    assert notes("limit average 0.5 burst 20\n") == {}


def test_restrictions_of_prefixes_are_classes() -> None:
    text = (
        "restrict default kod limited noquery\nrestrict 127.0.0.1\nrestrict -6 ::1\n"
        "restrict 198.51.100.0 mask 255.255.255.0 nomodify\nrestrict 198.51.100.9 noquery\n"
        "restrict 203.0.113.0 mask 255.255.255.0 ignore\n"
        "restrict 2001:db8:: mask ffff:ffff:: limited noquery\n"
        "restrict 2001:db8:1::/48 limited kod\n"
    )
    assert classes(text) == {
        "198.51.100.0/24": ("exempt", True, True),
        "198.51.100.9/32": ("exempt", True, False),
        "203.0.113.0/24": ("block", True, False),
        "2001:db8::/32": ("limit", False, False),
        "2001:db8:1::/48": ("limit", True, True),
    }
    assert notes(text) == {}


def test_a_second_restriction_of_a_prefix_adds_flags_and_unrestrict_takes_them_away() -> None:
    lines = (
        "nts enable\nrestrict 198.51.100.0/24 limited\nrestrict 198.51.100.0/24 noquery\n"
        "restrict 203.0.113.0/24 ignore\n"
    )
    assert classes(lines) == {
        "198.51.100.0/24": ("limit", False, False),
        "203.0.113.0/24": ("block", False, False),
    }
    less = "unrestrict 203.0.113.0/24\nunrestrict 198.51.100.0/24 limited\nunrestrict default limited\n"
    assert classes(lines + less) == {"198.51.100.0/24": ("exempt", True, False)}
    assert "limits nobody" in notes(lines + less)[7]


def test_the_line_named_is_the_one_that_limits_and_a_guess_is_told() -> None:
    text = "restrict default limited kod\nrestrict default nomodify\n"
    found = migrated([("f.conf", text)]).toml()
    assert "# f.conf:1: restrict default limited kod\n[limit]" in found
    assert "--from ntpsec" in found
    assert "--from ntpsec" not in migrated([("f.conf", text)], "ntpd").toml()


@pytest.mark.parametrize(
    ("text", "found", "limit"),
    [
        # IPv4's default is [limit]; IPv6's own is a class where it differs
        ("-4 default limited kod noquery\n-6 default limited noquery", {"::/0": False}, 10),
        ("-4 default limited\n-6 default limited", {}, 10),
        ("-4 default limited kod noquery\n-6 default ignore", {}, 10),
        ("-6 default limited noquery", {"::/0": False}, 32),
        # who is limited has the daemon's figures, though nobody else is
        ("default ignore\nrestrict 198.51.100.0/24 limited", {"198.51.100.0/24": False}, 32),
    ],
)
def test_defaults_of_each_family_hold_for_that_family(
    text: str, found: dict[str, bool], limit: int
) -> None:
    text = "".join(f"restrict {one.removeprefix('restrict ')}\n" for one in text.split("\n"))
    default, *others = policy(text).classes
    assert default.burst == limit
    assert {str(p): one.kod for one in others for p in one.prefixes} == found
    assert all((str(one.rate), one.burst) == ("10/minute", 10) for one in others)


@pytest.mark.parametrize(
    ("text", "interfaces", "destinations"),
    [
        ("listen 198.51.100.1\nlisten ::1", [], ["198.51.100.1"]),
        ("ignore wildcard\nlisten eth0", ["eth0"], []),
        # what a policy cannot say is left open
        ("listen eth0\nlisten 198.51.100.1", [], []),
        ("listen all\nlisten 198.51.100.1", [], []),
        ("listen 198.51.100.0/24", [], []),
        ("listen 198.51.100.1\ndrop 198.51.100.1", [], []),
    ],
)
def test_interfaces_are_carried_over_where_nothing_served_is_left_unguarded(
    text: str, interfaces: list[str], destinations: list[str]
) -> None:
    found = policy("".join(f"interface {one}\n" for one in text.split("\n")))
    assert list(found.interfaces) == interfaces
    assert [str(one) for one in found.destinations] == destinations


def test_what_ntpd_has_besides_is_carried_over_or_named_with_its_line() -> None:
    text = (
        "restrict default\nrestrict source notrap\nrestrict host.example.net limited\n"
        "mru maxdepth 5000\nmru maxmem 4096\ninterface listen 198.51.100.1\ninterface ignore wildcard\n"
        "disable monitor\nincludefile other.conf\ndiscard average x\nrestrict 198.51.100.1 wrong\n"
        "restrict 198.51.100.2 ntpport\nrestrict 198.51.100.3 notrust limited\n"
        "restrict 203.0.113.0 mask 0.0.0.255 ignore\nrestrict 203.0.113.9 noserve\n"
        "discard minimum 1\nserver 127.127.1.0\n"
    )
    assert policy(text).capacity == 1_048_576
    assert policy("mru maxdepth 2000000\n").capacity == 2_000_000
    assert [str(one) for one in policy(text).destinations] == ["198.51.100.1"]
    assert policy(text).upstreams == ()
    assert set(notes(text)) == {*range(1, 17)} - {6}
    assert set(classes(text)) == {"198.51.100.1/32", "198.51.100.3/32", "203.0.113.9/32"}


WORDS = st.sampled_from(
    [
        *(*chrony.DIRECTIVES, *sorted(ntp.TELLING), *sorted(ntp.FLAGS), *chrony.RATELIMIT),
        *(
            "allow",
            "deny",
            "bindaddress",
            "all",
            "default",
            "unrestrict",
            "-4",
            "mask",
            "average",
            "minimum",
            "listen",
            "-6",
        ),
        *("198.51.100.0/24", "2001:db8::1", "::", "0.0.0.0/0", "::/0", "255.0.255.0", "1.2"),
        *("1", "-1", "0", "9" * 20, "1e400", "nan", "inf", "-0.5", "x", "#", "!", '"\\'),
    ]
)


@given(
    st.lists(st.lists(WORDS | st.text(max_size=8), min_size=1, max_size=7), max_size=12),
    st.sampled_from([None, *KINDS]),
)
def test_whatever_is_read_comes_to_a_valid_policy_or_a_clear_error(
    lines: list[list[str]], kind: str | None
) -> None:
    text = "\n".join(" ".join(words) for words in lines)
    try:
        draft = migrated([("f.conf", text)], kind)
    except UsageError as error:
        assert kind is None and "--from" in str(error)
    else:
        assert isinstance(draft, Draft) and parse_policy(draft.toml()).mode == "observe"


def test_the_command_reads_several_files_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("ratelimit\n")
    (tmp_path / "b.conf").write_text("deny 203.0.113.0/24\ncmdratelimit\n")
    files = [str(tmp_path / name) for name in ("a.conf", "b.conf")]
    done = CliRunner().invoke(main, ["-q", "-o", "json", "migrate", *files])
    data = json.loads(done.output)["data"]
    assert done.exit_code == 0 and len(parse_policy(data["policy"]).classes) == 2
    assert [(one["file"], one["line"], one["directive"]) for one in data["notes"]] == [
        (files[1], 2, "cmdratelimit")
    ]
    for arguments, code, says in (
        ([str(tmp_path)], 1, "cannot be read: Is a directory"),
        ([str(tmp_path / "none")], 1, "No such file"),
        (["--from", "ntpd"], 2, "Missing argument"),
        (["-"], 2, "say --from chrony, ntpd or ntpsec"),
    ):
        done = CliRunner().invoke(main, ["migrate", *arguments], input="driftfile x\n")
        assert done.exit_code == code and says in done.output
    done = CliRunner().invoke(main, ["migrate", "-"], input="ratelimit\n")
    assert done.exit_code == 0 and "# -:1: ratelimit\n[limit]" in done.output


def test_a_pipe_is_read_and_what_is_no_text_is_named(tmp_path: Path) -> None:
    lines = "allow 203.0.113.0/24\r\nratelimit interval 1\r\n"
    done = subprocess.run(
        ["bash", "-c", f"{NTPGUARD} migrate <(printf '{lines}')"], capture_output=True, text=True
    )
    assert done.returncode == 0 and ":2: ratelimit interval 1\n[limit]" in done.stdout
    file = tmp_path / "chrony.conf"
    file.write_bytes(lines.encode("utf-8-sig"))
    assert "203.0.113.0/24" in CliRunner().invoke(main, ["migrate", str(file)]).output
    file.write_bytes(lines.encode("utf-16"))
    for path, code, says in (
        (file, 1, "not UTF-8 text: if it is UTF-16: iconv -f UTF-16 -t UTF-8"),
        (Path("/dev/zero"), 1, "cannot be read: larger than 64 MiB"),
        (Path("/dev/null"), 2, "no directive tells whose configuration this is: say --from"),
    ):
        done = CliRunner().invoke(main, ["migrate", str(path)])
        assert done.exit_code == code and done.output.startswith(f"ntpguard: {path}: {says}")


@pytest.mark.timeout(60)  # a second or two
def test_ten_thousand_denied_hosts_are_carried_over() -> None:
    hosts = [f"198.18.{n >> 8}.{n & 255}" for n in range(10_000)]
    text = "allow\ndeny 198.18.0.0/16\n" + "".join(f"deny {one}\n" for one in hosts)
    assert len(classes(text)) == 10_001
    assert len(classes(text + "allow 198.18.0.0/17\nallow all 198.18.0.0/16\n")) == 0
