"""The reader of BTF, against what clang makes of bpftool's rendering of the same types."""

import subprocess
from pathlib import Path

import pytest

from ntpguard.errors import NtpguardError
from ntpguard.trace import btf

pytestmark = pytest.mark.skipif(not btf.VMLINUX.exists(), reason="this kernel has no BTF")
MEMBERS = [
    ("sk_buff", "head"),
    ("sk_buff", "network_header"),  # inside an unnamed union and struct
    ("sk_buff", "protocol"),
    ("sk_buff", "skb_iif"),
    ("sk_buff", "dev"),
    ("net_device", "nd_net"),
    ("net", "net_cookie"),
    ("sock_common", "skc_net"),
]


@pytest.fixture(scope="module")
def types() -> btf.Types:
    return btf.read_types()


def test_offsets_are_those_that_clang_finds(types: btf.Types, tmp_path: Path) -> None:
    header = tmp_path / "vmlinux.h"
    command = ["bpftool", "btf", "dump", "file", str(btf.VMLINUX), "format", "c"]
    header.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    source = tmp_path / "offsets.c"
    lines = ['#include "vmlinux.h"']
    for name, member in MEMBERS:
        offset = types.offset(name, member)
        lines.append(
            f'_Static_assert(__builtin_offsetof(struct {name}, {member}) == {offset}, "{member}");'
        )
    for value, name in types.enumerators("skb_drop_reason").items():
        lines.append(f'_Static_assert({name} == {value}, "{name}");')
    source.write_text("\n".join(lines))
    clang = ["clang", "-target", "bpfel", "-w", "-fsyntax-only", str(source)]
    done = subprocess.run(clang, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_this_kernel_lacks_is_said_or_empty(types: btf.Types) -> None:
    with pytest.raises(NtpguardError, match=r"this kernel has no sk_buff\.nonsense"):
        types.offset("sk_buff", "nonsense")
    assert types.enumerators("nonsense") == {}
    assert types.parameters("nonsense") == 0
    assert types.parameters("btf_trace_kfree_skb") >= 3


def test_a_kernel_without_btf_is_told_the_setting(tmp_path: Path) -> None:
    with pytest.raises(NtpguardError, match="CONFIG_DEBUG_INFO_BTF"):
        btf.read_types(tmp_path / "vmlinux")
    (tmp_path / "other").write_bytes(b"\x7fELF" + bytes(60))
    with pytest.raises(NtpguardError, match="not little-endian BTF"):
        btf.read_types(tmp_path / "other")
