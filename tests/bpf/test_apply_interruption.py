"""policy apply, interrupted at any of its state-changing system calls: one policy runs, wholly."""

import os
import signal
from pathlib import Path

import pytest

from ntpguard import abi, lifecycle, running
from ntpguard.document import new_document
from ntpguard.kernel import libbpf
from ntpguard.policy.check import read_policy
from ntpguard.policy.compile import compile_policy
from ntpguard.policy.model import Policy
from ntpguard.policy.render import to_toml
from ntpguard.words import Mode
from tests.bpf.interrupted import CALLS, runner
from tests.bpf.test_health import status
from tests.bpf.test_lifecycle import NAMES, pytestmark, where
from tests.bpf.test_many_prefixes import many

__all__ = ["pytestmark", "where"]
# apply calls bpf() 46 times, the last three after the commit: in CI the signals take turns
STRIDE = 1 if "NTPGUARD_ALL" in os.environ else 2
OLD = """mode = "enforce"
destinations = ["198.51.100.1"]
[sources]
capacity = 4096
[[class]]
name = "old"
prefixes = ["203.0.113.0/24", "2001:db8:1::/48"]
action = "block"
"""


def apply(where: Path, file: Path) -> None:
    with running.writing(where) as descriptors:
        policy = read_policy(file)
        running.write(descriptors, policy, new_document(policy, str(file)))


def pairs(descriptors: dict[str, int], copy: int) -> dict[bytes, int]:
    """Keys and values of the tries of that copy."""
    found = {}
    for _, name, size in running.TRIES:
        inner = libbpf.map_lookup(descriptors[name], copy.to_bytes(4, "little"), 4)
        assert inner is not None
        fd = libbpf.map_by_id(int.from_bytes(inner, "little"))
        for key in libbpf.map_keys(fd, size):
            value = libbpf.map_lookup(fd, key, 4)
            assert value is not None
            found[key] = int.from_bytes(value, "little")
        os.close(fd)
    return found


def assert_runs(where: Path, policy: Policy, what: str) -> None:
    """Every map says what this policy says."""
    compiled = compile_policy(policy)
    with running.writing(where) as descriptors:
        root = running.read_root(descriptors)
        copy = abi.field(root, abi.ROOT_POLICY_SHIFT, 1)
        assert bytes(running.read_policy_map(descriptors, copy)) == bytes(compiled.policy), what
        assert Mode(abi.field(root, 0, abi.ROOT_MODE_BITS)).word == policy.mode, what
        assert pairs(descriptors, abi.field(root, abi.ROOT_PREFIXES_SHIFT, 1)) == {
            running.trie_key(prefix): value for prefix, value in compiled.prefixes.items()
        }, what
        fd = descriptors["addresses"]
        flag = (abi.ADDRESS_DESTINATION << copy).to_bytes(4, "little")
        marked = set()
        for key in libbpf.map_keys(fd, abi.size(abi.Address)):
            value = libbpf.map_lookup(fd, key, 4)
            assert value is not None
            if value[0] & flag[0]:
                marked.add(key)
        assert marked == {running.mapped(one) for one in policy.destinations}, what


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_what_is_interrupted_runs_one_of_the_two_policies_wholly(
    where: Path, tmp_path: Path, number: signal.Signals
) -> None:
    old_file = tmp_path / "old.toml"
    old_file.write_text(OLD)
    new_file = many(tmp_path, 1200)  # more than the document holds
    new_file.write_text('destinations = ["198.51.100.2"]\n' + new_file.read_text())
    old, new = read_policy(old_file), read_policy(new_file)
    lifecycle.up(
        NAMES[:1], old, xdp="auto", bpffs=where, policy_file=str(old_file), warn=lambda text: None
    )
    tried = dict.fromkeys(CALLS, 0)
    found = {"old": 0, "new": 0}
    with runner(number) as one:
        for call in CALLS:
            stride = STRIDE if call == "bpf" else 1
            when = 1 if number == signal.SIGKILL else 1 + stride // 2
            while True:
                ended = one.run(call, when, "policy", "apply", str(new_file))
                what = f"{call} {when}: {ended}"
                if not ended.hit:
                    assert ended.status == 0, what
                    assert_runs(where, new, what)
                    break
                tried[call] += 1
                with running.writing(where) as descriptors:
                    text = running.read_document(descriptors)["text"]
                which = "old" if text == to_toml(old) else "new"
                found[which] += 1
                assert_runs(where, old if which == "old" else new, what)
                assert status() == (0, []), what
                apply(where, old_file)
                assert_runs(where, old, what)
                when += stride
            apply(where, old_file)
    print(number.name, tried, found)
    assert tried["bpf"] > 30 // STRIDE and tried["flock"] == 1
    assert found["old"] and found["new"]
