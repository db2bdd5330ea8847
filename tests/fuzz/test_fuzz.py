"""The fuzzer finds what is planted, and nothing where nothing is."""

import shutil
import time
from pathlib import Path

import pytest

from tests.bpf.packets import IPV4
from tests.bpf.test_lifecycle import pytestmark
from tests.fuzz import frames
from tests.fuzz.__main__ import BUILD, ROOT, build, figures, run, unpack
from tests.model import frame
from tests.model.compare import Programs
from tests.model.compare import run as run_both
from tests.model.conftest import programs
from tests.model.sequence import Packet, Sequence

__all__ = ["programs", "pytestmark"]
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


@pytest.fixture(scope="module", autouse=True)
def known() -> Path:
    return unpack(BUILD / "known")


def test_what_is_known_breaks_nothing_and_a_short_search_neither(known: Path) -> None:
    fuzzer = build()
    code, report = run(fuzzer, "-runs=20000", "-seed=1", "-print_final_stats=1", str(known))
    assert code == 0, report
    assert figures(report)["edges"] > 500


@pytest.mark.parametrize(("name", "what", "instead", "says"), PLANTED)
def test_a_planted_fault_is_found_without_a_search(
    known: Path, tmp_path: Path, name: str, what: str, instead: str, says: str
) -> None:
    bpf = tmp_path / "bpf"
    shutil.copytree(ROOT / "bpf", bpf)
    text = (bpf / name).read_text(encoding="utf-8")
    assert what in text
    (bpf / name).write_text(text.replace(what, instead), encoding="utf-8")
    code, report = run(build(bpf, tmp_path / "planted"), "-runs=0", str(known))
    assert code != 0 and says in report, report


def test_the_loaded_program_judges_every_known_frame_as_the_model_does(programs: Programs) -> None:
    known = frames.known(BUILD / "known")
    assert len(known) > 1000
    for seed in range(5):
        program = programs.of(Sequence(seed, 0).shape)
        difference, _ = run_both(program, list(frames.steps(seed, known)))
        assert not difference, difference


def test_mutated_frames_are_judged_as_the_model_does_and_a_model_that_errs_is_found_out(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = frames.known(BUILD / "known")

    def search() -> list[str]:
        return frames.differences(known, programs, range(10), time.monotonic() + 60)[1]

    assert not search()
    monkeypatch.setattr(frame, "VLAN_TYPES", (b"\x81\x00",))
    assert search()


def test_the_model_bites_where_the_program_does_when_the_clock_wraps(programs: Programs) -> None:
    """The fuzzer's find: 2^58 ns after the boot, gcra's clock begins anew."""
    request = bytes(IPV4)
    for seed in range(60):
        sequence = Sequence(seed, 0)
        for late_ns in (-11 * 10**6, -9 * 10**6, -1, 0):
            times = (2**58 - 51 * 10**9, 2**58 + late_ns)
            packets = [Packet(clock_ns, 0xFFFFFFFF, request) for clock_ns in times]
            difference, _ = run_both(programs.of(sequence.shape), [*sequence.steps, *packets])
            assert not difference, difference
