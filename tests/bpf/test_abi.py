"""abi.py and words.py say what bpf/ntpguard.h says, as the BTF inside the object has it."""

import ctypes
import json
import subprocess
from typing import Any

import pytest

from ntpguard import abi, words
from tests.bpf.guard import OBJECT

STRUCTS = {
    "bucket": abi.Bucket,
    "limit": abi.Limit,
    "class_rule": abi.ClassRule,
    "bound": abi.Bound,
    "share": abi.Share,
    "local": abi.Local,
    "line": abi.Line,
    "entry": abi.Entry,
    "signature": abi.Signature,
    "signature_counters": abi.SignatureCounters,
    "policy": abi.Policy,
    "document": abi.Document,
    "shared": abi.Shared,
    "table": abi.Table,
    "counters": abi.Counters,
    "table_counters": abi.TableCounters,
    "offender": abi.Offender,
    "kod_counters": abi.KodCounters,
    "trial": abi.Trial,
    "constants": abi.Constants,
    "inputs": abi.Inputs,
    "address": abi.Address,
    "prefix_ipv4": abi.PrefixIpv4,
    "prefix_ipv6": abi.PrefixIpv6,
}
WORDS = {
    "ntpguard_family": ("FAMILY_", words.Family),
    "ntpguard_mode": ("MODE_", words.Mode),
    "ntpguard_action": ("ACTION_", words.Action),
    "ntpguard_verdict": ("VERDICT_", words.Verdict),
    "ntpguard_group": ("GROUP_", words.Group),
    "ntpguard_reason": ("REASON_", words.Reason),
}


@pytest.fixture(scope="module")
def types() -> list[dict[str, Any]]:
    dump = subprocess.run(
        ["bpftool", "-j", "btf", "dump", "file", str(OBJECT)], capture_output=True, check=True
    )
    found: list[dict[str, Any]] = json.loads(dump.stdout)["types"]
    return found


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_has_the_same_fields_at_the_same_places(
    types: list[dict[str, Any]], name: str
) -> None:
    (found,) = [one for one in types if one["kind"] == "STRUCT" and one["name"] == name]
    mirror = STRUCTS[name]
    assert found["size"] == ctypes.sizeof(mirror)
    theirs = {one["name"]: one["bits_offset"] // 8 for one in found["members"]}
    ours = {field[0]: getattr(mirror, field[0]).offset for field in mirror._fields_}
    if name == "address":
        assert ours == {"bytes": 0}  # in C, a union with its words
    else:
        assert theirs == ours


@pytest.mark.parametrize("name", WORDS)
def test_a_word_has_the_same_value(types: list[dict[str, Any]], name: str) -> None:
    (found,) = [one for one in types if one["kind"] == "ENUM" and one["name"] == name]
    prefix, mirror = WORDS[name]
    theirs = {
        one["name"].removeprefix(prefix): one["val"]
        for one in found["values"]
        if one["name"].startswith(prefix) and not one["name"].endswith("_ROOM")
    }
    assert theirs == {one.name: int(one) for one in mirror}


def test_every_constant_of_the_mirror_is_the_headers(types: list[dict[str, Any]]) -> None:
    theirs = {
        one["name"].removeprefix("NTPGUARD_"): one["val"]
        for enum in types
        if enum["kind"] == "ENUM"
        for one in enum["values"]
    }
    ours = {
        name: value
        for name, value in vars(abi).items()
        if name.isupper() and isinstance(value, int) and name in theirs
    }
    assert len(ours) > 25
    assert ours == {name: theirs[name] for name in ours}
