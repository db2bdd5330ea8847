"""The fuzzer finds what is planted, and nothing where nothing is."""

import shutil
from pathlib import Path

import pytest

from ntpguard import abi
from tests.bpf import guard
from tests.bpf.test_lifecycle import pytestmark
from tests.fuzz.__main__ import BUILD, ROOT, build, figures, run, unpack
from tests.fuzz.seeds import FRAME, frames

__all__ = ["pytestmark"]
# file, what is taken out, what is put there, what the fuzzer says
PLANTED = (
    ("packet.h", "if ((void *)(udp + 1) > end)", "if (at > end)", "AddressSanitizer"),
    ("packet.h", "length > ip_payload)", "length > 65535)", "broken: code == XDP_DROP"),
    (
        "gcra.h",
        "(tat + interval) | owner",
        "(tat + interval / 2) | owner",
        "broken: one->count <= most",
    ),
    ("kod.h", "ntp->stratum = 0;", "ntp->stratum = 1;", "broken: kod[0] =="),
    ("kod.h", "ipv4->tos = 0;", "", "broken: was[at] == 0x45"),
)


@pytest.fixture(scope="module")
def known() -> Path:
    return unpack(BUILD / "known")


def test_what_is_known_breaks_nothing_and_a_short_search_neither(known: Path) -> None:
    fuzzer = build()
    code, report = run(fuzzer, "-runs=20000", "-seed=1", "-print_final_stats=1", str(known))
    assert code == 0, report
    assert figures(report)["edges"] > 430


@pytest.mark.parametrize(("name", "what", "instead", "says"), PLANTED)
def test_a_planted_fault_is_found(
    known: Path, tmp_path: Path, name: str, what: str, instead: str, says: str
) -> None:
    bpf = tmp_path / "bpf"
    shutil.copytree(ROOT / "bpf", bpf)
    text = (bpf / name).read_text(encoding="utf-8")
    assert what in text
    (bpf / name).write_text(text.replace(what, instead), encoding="utf-8")
    code, report = run(build(bpf, tmp_path / "planted"), "-max_total_time=60", str(known))
    assert code != 0 and says in report, report


def test_the_loaded_program_takes_every_frame_that_is_known(known: Path) -> None:
    found = {bytes(one) for one in frames()}
    for path in known.iterdir():
        data = path.read_bytes()[1:]
        while len(data) > 2:
            kind, size = data[0], int.from_bytes(data[1:3], "little")
            size = size % 2048 if kind >= FRAME else 0
            found.add(data[3 : 3 + size])
            data = data[3 + size :]
    # the kernel runs no shorter ones
    whole = [one for one in found if len(one) >= 14]
    assert len(whole) > 100
    with guard.guard() as one:
        for frame in whole:
            code, after = one.run(frame)
            assert code in (abi.Xdp.PASS, abi.Xdp.DROP, abi.Xdp.TX)
            assert len(after) == len(frame)
            assert code != abi.Xdp.PASS or after == frame
