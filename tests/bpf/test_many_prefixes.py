"""A hundred thousand prefixes: kept in the tries alone, and read back as they were."""

import errno
import ipaddress
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from ntpguard import abi, lifecycle, program, reading, running, tries
from ntpguard.cli import main
from ntpguard.document import effective_policy
from ntpguard.errors import NtpguardError
from ntpguard.kernel import binding, libbpf
from ntpguard.policy.check import read_policy
from ntpguard.policy.model import Policy
from tests.bpf.test_lifecycle import NAMES, POLICY, pytestmark, up, where

__all__ = ["pytestmark", "where"]
HEAD = """mode = "enforce"
upstreams = ["198.51.100.0/24", "198.51.100.7/32", "2001:db8:7::/64"]
[sources]
capacity = 4096
"""
CLASS = '[[class]]\nname = "{0}"\nprefixes_file = "{0}.txt"\n'


def many(directory: Path, count: int) -> Path:
    """A policy file whose two classes have so many prefixes, some in one another or upstreams."""
    chance = random.Random(count)
    chosen = {ipaddress.ip_network("198.51.100.0/24"), ipaddress.ip_network("2001:db8:7::1/128")}
    while len(chosen) < count:
        if chance.random() < 0.5:
            number, bits = chance.getrandbits(24) << 8, chance.choice((24, 24, 28, 32))
            chosen.add(ipaddress.ip_network((0x0B000000 | number & 0x0FFFFF00, bits)))
        else:
            number = 0x20010DB8 << 96 | chance.getrandbits(96)
            chosen.add(ipaddress.ip_network((number, chance.choice((48, 64, 128))), strict=False))
    lines = [f"{one}\n" for one in chosen]
    (directory / "one.txt").write_text("".join(lines[::2]))
    (directory / "two.txt").write_text("".join(lines[1::2]))
    file = directory / "ntpguard.toml"
    file.write_text(HEAD + CLASS.format("one") + CLASS.format("two"))
    return file


@contextmanager
def written(where: Path, file: Path) -> Iterator[tuple[Policy, dict[str, int]]]:
    """The guard runs this file's policy; the policy, and the maps' descriptors."""
    policy = read_policy(file)
    lifecycle.up(
        NAMES[:1], policy, xdp="auto", bpffs=where, policy_file=str(file), warn=lambda text: None
    )
    with running.writing(where) as descriptors:
        yield policy, descriptors


def limit(*arguments: str) -> None:
    done = CliRunner().invoke(main, ["limit", *arguments])
    assert done.exit_code == 0, done.output


def test_a_hundred_thousand_prefixes_are_read_back_as_they_were_applied(
    where: Path, tmp_path: Path
) -> None:
    with written(where, many(tmp_path, 100_000)) as (policy, descriptors):
        assert sum(one.prefix_count for one in policy.classes) == 100_000
        assert tries.whole_policy(descriptors) == policy
        document = running.read_document(descriptors)
        assert len(document["text"]) < 2000
        assert [one.prefixes for one in effective_policy(document).classes] == [()] * 3


def test_a_live_change_leaves_many_prefixes_alone(where: Path, tmp_path: Path) -> None:
    with written(where, many(tmp_path, 3000)) as (policy, descriptors):

        def generation() -> int:
            root = running.read_root(descriptors)
            return abi.field(root, abi.ROOT_GENERATION_SHIFT, abi.ROOT_GENERATION_BITS)

        def flags() -> int:
            copy = abi.field(running.read_root(descriptors), abi.ROOT_POLICY_SHIFT, 1)
            return int(running.read_policy_map(descriptors, copy).flags)

        before = generation(), flags()
    assert before[1] & abi.POLICY_LONG_IPV6 and before[1] & abi.POLICY_PREFIXES_IPV4
    limit("set", "two", "--rate", "7/minute", "--burst", "9")
    with running.writing(where) as descriptors:
        assert (generation(), flags()) == before
        whole = tries.whole_policy(descriptors)
        assert (str(whole.classes[2].rate), whole.classes[2].burst) == ("7/minute", 9)
        assert [one.prefixes for one in whole.classes] == [one.prefixes for one in policy.classes]
    with reading.open_running(where) as guard:
        first = policy.classes[2].prefixes[0]
        found = guard.match(first.network_address)
        assert (found.class_index, found.prefix) == (2, first)
        within = guard.match(ipaddress.ip_address("198.51.100.7"))
        assert (within.class_index, within.prefix) == (
            1 if ipaddress.ip_network("198.51.100.0/24") in policy.classes[1].prefixes else 2,
            ipaddress.ip_network("198.51.100.7/32"),
        )


def test_many_prefixes_are_read_one_by_one_where_the_kernel_has_no_batches(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old:
        """libbpf on a kernel without these."""

        def __init__(self, library: object) -> None:
            self._library = library

        def __getattr__(self, name: str) -> object:
            if name.endswith("_batch"):
                return lambda *arguments: -errno.EINVAL
            return getattr(self._library, name)

    old = Old(binding.library())
    monkeypatch.setattr(libbpf, "library", lambda: old)
    with written(where, many(tmp_path, 1500)) as (policy, descriptors):
        assert tries.whole_policy(descriptors) == policy


def test_an_up_that_fails_puts_many_prefixes_back(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with written(where, many(tmp_path, 3000)) as (policy, _):
        pass

    def refused(*arguments: object) -> None:
        raise NtpguardError("refused")

    monkeypatch.setattr(program, "attach", refused)
    with pytest.raises(NtpguardError, match="refused"):
        up(where, *NAMES, policy=POLICY)
    with reading.open_running(where) as guard:
        assert guard.whole_policy() == policy


def test_prefixes_that_are_not_those_applied_are_not_shown(where: Path, tmp_path: Path) -> None:
    with written(where, many(tmp_path, 3000)) as (_, descriptors):
        copy = abi.field(running.read_root(descriptors), abi.ROOT_PREFIXES_SHIFT, 1)
        trie = running._trie(4, 8, [])
        libbpf.map_update(
            descriptors["prefixes_ipv4"], copy.to_bytes(4, "little"), trie.to_bytes(4, "little")
        )
        with pytest.raises(NtpguardError, match="class one: the prefixes in the kernel are not"):
            tries.whole_policy(descriptors)


def test_the_status_knows_of_many_prefixes_whether_the_file_says_them(
    where: Path, tmp_path: Path
) -> None:
    file = many(tmp_path, 3000)
    with written(where, file):
        pass
    limit("set", "two", "--rate", "7/minute", "--burst", "9")
    with reading.open_running(where) as guard:
        assert guard.differs_from_file() is True
    limit("unset", "two")
    with reading.open_running(where) as guard:
        assert guard.differs_from_file() is False
        file.write_text("# a comment\n" + file.read_text())
        assert guard.differs_from_file() is False
        prefixes = tmp_path / "two.txt"
        prefixes.write_text(prefixes.read_text() + "203.0.113.0/24\n")
        assert guard.differs_from_file() is True
