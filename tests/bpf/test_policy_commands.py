"""policy apply, diff, show, describe: through the command line, on a running guard."""

import json
import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ntpguard import abi, reading, running
from ntpguard.cli import main
from ntpguard.document import effective_policy, new_document
from ntpguard.kernel import bpffs, interfaces, maps
from ntpguard.policy.check import parse_policy, read_policy
from ntpguard.policy.render import to_toml
from ntpguard.words import Verdict
from tests import testrun
from tests.bpf.packets import IPV4
from tests.bpf.test_lifecycle import NAMES, pytestmark, where
from tests.bpf.test_many_prefixes import many

__all__ = ["pytestmark", "where"]
TEXT = """mode = "enforce"

[sources]
capacity = 4096

[limit]
rate = "1/hour"
burst = 3

[[class]]
name = "campus"
prefixes = ["198.51.100.0/24"]
burst = 100
"""


# what keeps the two apart before click 8.2, which always does
SPLIT: Any = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}


def ntpguard(*arguments: object) -> Result:
    return CliRunner(**SPLIT).invoke(main, [str(one) for one in arguments])


def ok(*arguments: object) -> str:
    done = ntpguard(*arguments)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout)


def data(*arguments: object) -> Any:
    return json.loads(ok("-o", "json", *arguments))["data"]


def policy_of(where: Path) -> str:
    with reading.open_running(where) as guard:
        return to_toml(guard.whole_policy())


@pytest.fixture
def file(where: Path, tmp_path: Path) -> Path:
    """The file whose policy runs."""
    file = tmp_path / "ntpguard.toml"
    file.write_text(TEXT)
    ok("up", NAMES[0], "--policy", file)
    return file


def verdicts(where: Path, count: int) -> list[Verdict]:
    """What happens to so many requests of one source."""
    own = bpffs.interface_pins(bpffs.pins(where), interfaces.interface(NAMES[0]).ifindex)
    frame = bytes(IPV4.but(destination_mac=interfaces.interface(NAMES[0]).mac))
    with maps.descriptor(own / "program") as program:
        codes = [abi.Xdp(testrun.run(program, frame)[0]) for _ in range(count)]
    return [Verdict.PASS if code == abi.Xdp.PASS else Verdict.DROP for code in codes]


def test_a_policy_is_applied_and_sources_keep_their_state(where: Path, file: Path) -> None:
    assert verdicts(where, 3) == [Verdict.PASS] * 3
    assert policy_of(where) == to_toml(read_policy(file))
    file.write_text(TEXT.replace("burst = 3", 'burst = 5\nleak = "1/1024"'))
    assert ok("policy", "apply") == (
        "limit.burst: 3 -> 5\nlimit.leak: 1/4 -> 1/1024\nclass.campus.leak: 1/4 -> 1/1024\n"
    )
    assert policy_of(where) == to_toml(read_policy(file))
    # two more than before: the three that it has asked for are not forgotten
    assert verdicts(where, 2) == [Verdict.PASS] * 2
    with reading.open_running(where) as guard:
        (source,) = guard.top(1, "requests")
        assert (source.requests, source.excess) == (5, 0)


def test_what_changes_is_told_in_json_and_a_dry_run_changes_nothing(
    where: Path, file: Path
) -> None:
    before = policy_of(where)
    other = file.with_name("other.toml")
    other.write_text(
        TEXT.replace("burst = 100", 'action = "block"').replace("0/24", "0/25")
        + '[[signature]]\nname = "s"\nsource_port = 1337\n'
    )
    found = data("policy", "apply", other, "--dry-run")
    assert found == {
        "file": str(other),
        "applied": False,
        "changes": [
            {
                "setting": "class.campus.prefixes",
                "before": 1,
                "after": 1,
                "items": {
                    "added": 1,
                    "removed": 1,
                    "first_added": ["198.51.100.0/25"],
                    "first_removed": ["198.51.100.0/24"],
                },
            },
            {"setting": "class.campus.action", "before": "limit", "after": "block", "items": None},
            {"setting": "class.campus.burst", "before": 100, "after": 3, "items": None},
            {
                "setting": "signature.s",
                "before": None,
                "after": "source_port 1337, when excess, mode enforce",
                "items": None,
            },
        ],
        "live_dropped": [],
        "live_kept": [],
        "warnings": [],
    }
    assert policy_of(where) == before
    assert data("policy", "apply", other) == {**found, "applied": True}
    assert policy_of(where) == to_toml(read_policy(other))
    assert data("status")["policy"]["file"] == str(other)
    assert "no setting changes" in ntpguard("policy", "apply").stderr


def test_live_changes_are_dropped_by_name_or_kept(where: Path, file: Path) -> None:
    def change() -> None:
        ok("limit", "set", "campus", "--rate", "7/second")
        ok("mode", "observe")

    change()
    kept = ntpguard("policy", "apply", "--keep-live")
    assert (kept.exit_code, kept.stdout) == (0, "")
    assert "live changes kept: mode observe; limit of campus: rate 7/second" in kept.stderr
    assert data("status")["mode"] == "observe"
    dropped = ntpguard("policy", "apply")
    assert dropped.stdout == "mode: observe -> enforce\nclass.campus.rate: 7/second -> 1/hour\n"
    assert f"gave way to {file}: mode observe; limit of campus: rate 7/second" in dropped.stderr
    assert policy_of(where) == to_toml(read_policy(file))
    change()
    file.write_text(TEXT.partition("[[class]]")[0])
    found = data("policy", "apply", "--keep-live")
    assert found["live_dropped"] == ["limit of campus: rate 7/second"]
    assert found["live_kept"] == ["mode observe"]
    assert data("policy", "diff")["changes"] == [
        {"setting": "mode", "running": "observe", "file": "enforce", "items": None, "live": True}
    ]


def test_what_is_live_for_a_time_is_kept_until_then_and_only_if_its_class_is(
    where: Path, file: Path
) -> None:
    ok("limit", "set", "campus", "--rate", "7/second", "--for", "1h")
    ok("mode", "observe", "--for", "1h")
    kept = ntpguard("policy", "apply", "--keep-live").stderr
    assert re.search(r"mode observe until \S+Z; limit of campus: rate 7/second.* until", kept), kept
    with running.writing(where) as descriptors:
        assert set(running.read_document(descriptors)["temporary"]) == {"mode", "limit campus"}
        copy = abi.field(running.read_root(descriptors), abi.ROOT_POLICY_SHIFT, 1)
        compiled = running.read_policy_map(descriptors, copy)
        assert compiled.mode_until_ns and compiled.classes[1].until_ns
    file.write_text(TEXT.partition("[[class]]")[0])
    dropped = data("policy", "apply", "--keep-live")["live_dropped"]
    assert [one.partition(":")[0] for one in dropped] == ["limit of campus"]
    with running.writing(where) as descriptors:
        assert set(running.read_document(descriptors)["temporary"]) == {"mode"}
    ok("policy", "apply")
    with running.writing(where) as descriptors:
        copy = abi.field(running.read_root(descriptors), abi.ROOT_POLICY_SHIFT, 1)
        assert running.read_policy_map(descriptors, copy).mode_until_ns == 0
    assert data("status")["mode"] == "enforce"


def test_a_live_limit_that_cannot_be_kept_is_refused(where: Path, file: Path) -> None:
    ok("limit", "set", "campus", "--rate", "1000/second")
    before = policy_of(where)
    file.write_text(TEXT.replace("burst = 100", "burst = 2"))
    done = ntpguard("policy", "apply", "--keep-live")
    assert done.exit_code == 3
    assert "burst 2 of class campus: must be at least 11 for 1000/second" in done.stderr
    assert policy_of(where) == before


REFUSED = {
    "ports": ('ports = [123, 1123]\n', r"ports: 123 -> 123, 1123: .*: run ntpguard up guard0 --policy"),
    "interface to add": (
        'interfaces = ["guard0", "guard1"]\n',
        "interfaces: guard1 not guarded: run ntpguard up guard1 --policy",
    ),
    "interface to leave": (
        'interfaces = ["guard1"]\n',
        "interfaces: guard0 guarded, the policy does not name it: run ntpguard down guard0",
    ),
    "xdp": ('xdp = "skb"\n', "xdp: guard0 is attached in mode native, the policy wants skb: run"),
    "capacity": ("[sources]\ncapacity = 8192\n", "sources: .* the policy wants 8192 of /32 and /64"),
    "prefix length": (
        "[sources]\ncapacity = 4096\nipv6_prefix = 56\n",
        "sources: .* 4096 of /32 and /56: run ntpguard down first .*, then ntpguard up guard0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_changed_live_is_refused_with_the_way_to_do_it(
    where: Path, file: Path, what: str
) -> None:
    before = policy_of(where)
    stated, message = REFUSED[what]
    sources = "" if "[sources]" in stated else "[sources]\ncapacity = 4096\n"
    file.write_text('mode = "off"\n' + stated + sources)
    done = ntpguard("policy", "apply")
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.endswith("nothing is applied\n")
    assert policy_of(where) == before


def test_what_is_so_already_is_no_reason_to_refuse(where: Path, file: Path) -> None:
    file.write_text('interfaces = ["guard0"]\nxdp = "native"\non_exit = "detach"\n' + TEXT)
    changes = data("policy", "apply")["changes"]
    assert [one["setting"] for one in changes] == ["interfaces", "xdp", "on_exit"]
    file.write_text(TEXT.replace("4096", "4000"))  # the same table
    assert "sources.capacity: 4096 -> 4000" in ok("policy", "apply")


def test_errors_have_their_exit_codes_and_change_nothing(where: Path, file: Path) -> None:
    before = policy_of(where)
    bad = file.with_name("bad.toml")
    bad.write_text("[limit]\nburst = 0\n")
    for arguments, code, told in (
        (("policy", "apply", bad), 3, "bad.toml:2: limit.burst: must be"),
        (("policy", "diff", bad), 3, "bad.toml:2: limit.burst: must be"),
        (("policy", "apply", file.with_name("none.toml")), 3, "none.toml: cannot read: No such"),
        (("policy", "apply", ""), 2, "no policy file named (got '')"),
        (("up", NAMES[0], "--policy", ""), 2, "no policy file named (got '')"),
        (("policy", "diff", "--exit"), 2, "No such option"),
    ):
        done = ntpguard(*arguments)
        assert (done.exit_code, told in done.stderr) == (code, True), done.stderr
    assert policy_of(where) == before
    ok("down")
    for command in ("apply", "diff", "show", "describe"):
        assert ntpguard("policy", command).exit_code == 4
    assert ntpguard("policy", "apply", file).exit_code == 4


def test_the_difference_is_told_and_what_is_pasted_makes_it_go_away(
    where: Path, file: Path
) -> None:
    done = ntpguard("policy", "diff", "--exit-code")
    assert (done.exit_code, done.stdout) == (0, "")
    ok("limit", "set", "campus", "--rate", "7/second", "--burst", 50)
    assert ntpguard("policy", "diff").exit_code == 0
    done = ntpguard("policy", "diff", "--exit-code")
    assert done.exit_code == 1
    assert done.stdout == (
        f"# what runs -> {file}\n"
        "# class.campus.rate: 7/second -> 1/hour (live)\n"
        "# class.campus.burst: 50 -> 100 (live)\n"
        f"\n# to make {file} say what runs:\n\n"
        "# instead of class campus, line 10\n"
        '[[class]]\nname = "campus"\nprefixes = ["198.51.100.0/24"]\nrate = "7/second"\nburst = 50\n'
    )
    toml = data("policy", "diff")["toml"]
    file.write_text(TEXT.partition("[[class]]")[0] + toml)
    assert ntpguard("policy", "diff", "--exit-code").exit_code == 0
    assert data("policy", "diff")["changes"] == []
    assert ok("policy", "apply") == ""
    assert data("limit", "list")[1]["rate"] == "7/second"


def test_without_a_file_the_difference_is_from_the_built_in_policy(where: Path) -> None:
    with CliRunner().isolated_filesystem():
        Path("p.toml").write_text("[sources]\ncapacity = 4096\n")
        ok("up", NAMES[0], "--policy", "p.toml")
    with running.writing(where) as descriptors:
        document = running.read_document(descriptors)
        policy = effective_policy(document)
        running.write(descriptors, policy, new_document(policy, None))
    ok("limit", "set", "--burst", 9)
    found = data("policy", "diff")
    assert found["file"] is None
    assert [one["setting"] for one in found["changes"]] == ["sources.capacity", "limit.burst"]
    assert [one["live"] for one in found["changes"]] == [False, True]
    assert found["toml"] == "# new\n[sources]\ncapacity = 4096\n\n# new\n[limit]\nburst = 9\n"


def test_many_prefixes_are_applied_shown_and_compared(where: Path, file: Path) -> None:
    own = many(file.parent, 2000)
    changes = data("policy", "apply", own)["changes"]
    assert {one["setting"] for one in changes} == {
        "upstreams", "limit.rate", "limit.burst", "class.campus", "class.one", "class.two",
    }  # fmt: skip
    assert ok("policy", "show") == ok("policy", "show", own)
    assert parse_policy(ok("policy", "show")) == read_policy(own)
    assert [one["prefixes"] for one in data("limit", "list")] == [0, 1000, 1000]
    with reading.open_running(where) as guard:
        hashed = guard.policy_hash()
    ok("limit", "set", "one", "--burst", 9)
    assert 'prefixes_file = "one.txt"' in data("policy", "diff")["toml"]
    ok("limit", "unset", "one")
    two = own.with_name("two.txt")
    removed, *rest = two.read_text().splitlines()
    two.write_text("\n".join([*rest, "203.0.113.0/24", "203.0.113.1"]))
    found = data("policy", "diff")
    assert [one["setting"] for one in found["changes"]] == ["class.two.prefixes"]
    assert found["changes"][0]["items"] == {
        "added": 2,
        "removed": 1,
        "first_added": ["203.0.113.0/24", "203.0.113.1/32"],
        "first_removed": [removed],
    }
    assert parse_policy(found["toml"]).class_named("two").prefix_count == 1000  # type: ignore[union-attr]
    told = ok("policy", "apply")
    assert told.count("\n") == 1, told
    with reading.open_running(where) as guard:
        assert guard.policy_hash() != hashed
    line = told.rstrip()
    assert line == (
        f"class.two.prefixes: 1000 -> 1001: added 203.0.113.0/24, 203.0.113.1/32; removed {removed}"
    )
    ok("policy", "apply", file)
    assert policy_of(where) == to_toml(read_policy(file))


def test_the_policy_that_runs_is_described(where: Path, file: Path) -> None:
    text = ok("policy", "describe", "--markdown", "--contact", "ntp@example.net")
    assert "1 request an hour on average, up to 3 at once" in text
    assert "not enforced" not in text and "nothing of this is enforced" not in text
    assert text.endswith("## Contact\n\n- ntp@example.net\n")
    ok("mode", "observe")
    assert "At present nothing of this is enforced" in ok("policy", "describe")
    found = data("policy", "describe")
    assert found["enforced"] is False
    assert found["sections"][0]["heading"] == "What a client may ask"
    assert data("policy", "describe", file)["enforced"] is True
