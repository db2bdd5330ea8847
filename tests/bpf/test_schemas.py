"""What commands print as JSON is what the schemas that are shipped say, key by key."""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from ntpguard import episodes
from ntpguard.cli import main
from ntpguard.episodes import Episode, Kept
from ntpguard.policy.check import parse_policy
from tests import captures
from tests.bpf.live import packets, told
from tests.bpf.packets import CLIENT4, IPV4, IPV6, SERVER4
from tests.bpf.test_lifecycle import NAMES, ip, pytestmark, up, where
from tests.bpf.test_policy_commands import SPLIT

__all__ = ["pytestmark", "where"]
POLICY = """mode = "enforce"
[sources]
capacity = 4096
[limit]
rate = "1/hour"
burst = 2
[[class]]
name = "campus"
prefixes = ["2001:db8:12::/64"]
rate = "30/minute"
burst = 8
[[class]]
name = "friends"
prefixes = ["2001:db8:12::9"]
action = "exempt"
"""
# commands that print no JSON
SILENT = {"export", "run"}
# command -> calls of it that print each form of its data; POLICY, OTHER, CAPTURE, CHRONY: files
CALLS = {
    "block": ("198.18.0.0/15", "203.0.113.9 --for ever --reason why"),
    "clear": (f"{CLIENT4}",),
    "completion": ("bash",),
    "doctor": ("",),
    "down": ("",),
    "entries": ("",),
    "episodes list": ("", "-n 1"),
    "episodes report": ("203.0.113.7",),
    "exempt": ("2001:db8:7::/48", "203.0.113.9 --for ever"),
    "kod": ("",),
    "limit list": ("",),
    "limit set": ("--rate 30/minute", "campus --burst 9 --for 1h"),
    "limit unset": ("", "campus"),
    "migrate": ("CHRONY",),
    "mode": ("observe", "off --for 1h"),
    "policy apply": ("POLICY --dry-run", "POLICY --keep-live"),
    "policy check": ("POLICY",),
    "policy describe": ("", "POLICY --contact ntp@example.net"),
    "policy diff": ("", "POLICY"),
    "policy show": ("", "POLICY"),
    "policy signatures": ("",),
    "replay": ("CAPTURE --policy POLICY", "CAPTURE --policy POLICY --compare OTHER"),
    "show": (CLIENT4, "2001:db8:12::7", "203.0.113.200", "203.0.113.9"),
    "status": ("", "--brief"),
    "top": (
        "",
        "--sort requests",
        "--sort last",
        "--sort kod",
        "--by prefix",
        "--by class --sort requests",
    ),
    "trace": ("--seconds 0.1",),
    "up": (f"{NAMES[0]} --policy POLICY",),
}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command below a group that is none itself, as it is typed."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name))


def schema(command: str) -> dict[str, Any]:
    """As installed with the package."""
    file = resources.files("ntpguard") / "schemas" / f"{command.replace(' ', '-')}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def shipped() -> set[str]:
    """The commands that have a schema."""
    folder = resources.files("ntpguard") / "schemas"
    return {one.name.removesuffix(".json").replace("-", " ") for one in folder.iterdir()}


def objects(part: Any) -> Iterator[dict[str, Any]]:
    """Every schema of an object within a schema."""
    if isinstance(part, dict):
        if "object" in part.get("type", ()):
            yield part
        for one in part.values():
            yield from objects(one)
    elif isinstance(part, list):
        for one in part:
            yield from objects(one)


def test_every_command_that_prints_json_has_a_schema_and_is_called_here() -> None:
    there = set(commands(main)) - SILENT
    missing = [
        f"ntpguard/schemas/{one.replace(' ', '-')}.json is missing: write the schema of what "
        f"`ntpguard -o json {one}` prints as data (or add {one!r} to SILENT if it prints none)"
        for one in sorted(there - shipped())
    ]
    missing += [
        f"CALLS[{one!r}] is missing: add calls of `ntpguard {one}` that print each form of its data"
        for one in sorted(there - CALLS.keys())
    ]
    missing += [f"{one}: has a schema, but is no command" for one in sorted(shipped() - there)]
    assert not missing, "\n" + "\n".join(missing)


@pytest.mark.parametrize("command", sorted(shipped()))
def test_a_schema_is_one_and_leaves_no_key_open(command: str) -> None:
    own = schema(command)
    Draft202012Validator.check_schema(own)
    assert own["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for one in objects(own):
        assert one["additionalProperties"] is False
        assert one["required"] == list(one["properties"])  # what is unknown is null


@pytest.fixture
def guard(where: Path) -> Path:
    """A guard with sources over their limit, entries and a temporary limit."""
    ip("address", "add", f"{SERVER4}/24", "dev", NAMES[0])
    up(where, policy=parse_policy(POLICY))
    with packets(where) as send:
        for _ in range(40):
            send(IPV4)
            send(IPV6)
    told("block", CLIENT4, "--reason", "why")
    told("limit", "set", "--burst", "3", "--for", "1h")
    return where


@pytest.mark.parametrize(
    ("command", "call"), [(command, call) for command, calls in CALLS.items() for call in calls]
)
def test_what_a_command_prints_is_as_its_schema_says(
    guard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, call: str
) -> None:
    file = tmp_path / "ntpguard.toml"
    file.write_text(POLICY)
    other = tmp_path / "other.toml"
    other.write_text(POLICY.replace("burst = 2", "burst = 4"))
    capture = tmp_path / "ntp.pcap"
    capture.write_bytes(captures.pcap([(n * 10**9, bytes(IPV4), None) for n in range(9)]))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    episodes.save(Kept(open=(Episode("203.0.113.7", 1e9, 1e9 + 60, requests=90, excess=60),)))
    files = {"POLICY": str(file), "OTHER": str(other), "CAPTURE": str(capture)}
    files["CHRONY"] = str(tmp_path / "chrony.conf")
    (tmp_path / "chrony.conf").write_text("ratelimit\ncmdratelimit\n")
    words = [*command.split(), *(files.get(one, one) for one in call.split())]
    for output in ("json", "ndjson"):
        done = CliRunner(**SPLIT).invoke(main, ["-o", output, *words])
        # 1: doctor finds something that fails
        assert done.exit_code in ((0, 1) if command == "doctor" else (0,)), done.stderr
        lines = done.stdout.splitlines() if output == "ndjson" else [done.stdout]
        for line in lines:
            shown = json.loads(line)
            assert shown.keys() == {"schema", "time", "data"} and shown["schema"] == 1
            assert shown["time"].endswith("Z")
            own = schema(command)
            if output == "ndjson" and own.get("type") == "array":
                own = {**own["items"], "$schema": own["$schema"]}
            Draft202012Validator(own).validate(shown["data"])
        if command in ("down", "clear"):  # there is nothing more
            break


def test_a_key_that_a_schema_does_not_name_is_refused() -> None:
    own = Draft202012Validator(schema("block"))
    good = {"prefix": "198.18.0.0/15", "action": "block", "expires": None}
    assert own.is_valid(good)
    assert not own.is_valid(good | {"more": 1})
    assert not own.is_valid(good | {"expires": "2026-11-25T14:17:04+00:00"})
