"""make fuzz MINUTES=n: all that reads what a stranger wrote, with broken things to read.

At once: the packet path in user space under libFuzzer, address and undefined sanitizers; mutated frames
through the loaded program, beside the model; mutated files and arguments through their readers. Keeps a
small corpus and writes RESULT.json. The exit code is 1 if anything was found; what breaks it lies in
build/fuzz.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from tests.fuzz import frames, policies, readers, seeds
from tests.model.compare import Programs

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build/fuzz"
CORPUS = HERE / "corpus.tar.xz"
RESULT = HERE / "RESULT.json"
LONGEST_INPUT = 4096
TURNS, MOST_FOUND = 8, 5
SEEDS = 100_000  # of one turn, more than it has time for
WARNINGS = (
    "-Wall", "-Wno-unused-function", "-Wno-duplicate-decl-specifier",
    "-Wno-incompatible-library-redeclaration",
)  # fmt: skip


def build(bpf: Path = ROOT / "bpf", to: Path = BUILD / "decision") -> Path:
    """The fuzzer, of the packet path in `bpf`."""
    to.parent.mkdir(parents=True, exist_ok=True)
    policies.write(BUILD / "policies.h")
    source = to.with_suffix(".c")
    text = (HERE / "decision.c").read_text(encoding="utf-8")
    source.write_text(text.replace("../../bpf/", f"{bpf}/"), encoding="utf-8")
    sanitize = "-fsanitize=fuzzer,address,undefined"
    # frames are not aligned, and the kernel's machines do not mind
    command = ["clang", "-g", "-O1", sanitize, "-fno-sanitize=alignment"]
    command += [
        "-fno-sanitize-recover=all",
        *WARNINGS,
        f"-I{HERE / 'include'}",
        f"-I{HERE}",
        f"-I{BUILD}",
    ]
    multiarch = subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True)
    command += [f"-I/usr/include/{multiarch.stdout.strip()}", str(source), "-o", str(to)]
    subprocess.run(command, check=True)
    return to


def unpack(folder: Path) -> Path:
    """The seeds and the corpus that is kept, as files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(seeds.seeds()):
        (folder / f"seed-{number:04}").write_bytes(one)
    if CORPUS.exists():
        with tarfile.open(CORPUS) as packed:
            for member in packed.getmembers():
                data = packed.extractfile(member)
                assert data and "/" not in member.name
                (folder / member.name).write_bytes(data.read())
    return folder


def pack(folder: Path) -> None:
    """The corpus that is kept: the fewest inputs that reach all that was reached."""
    with tarfile.open(CORPUS, "w:xz") as packed:
        for path in sorted(folder.iterdir()):
            info = tarfile.TarInfo(path.name)
            info.size = path.stat().st_size
            with path.open("rb") as data:
                packed.addfile(info, data)


def command(fuzzer: Path, *arguments: str) -> list[str]:
    """What breaks it lies beside the fuzzer."""
    return [str(fuzzer), f"-artifact_prefix={fuzzer.parent}/broken-", *arguments]


def run(fuzzer: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and report."""
    done = subprocess.run(
        command(fuzzer, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        text=True,
    )
    return done.returncode, done.stdout


def figures(report: str) -> dict[str, int]:
    """What libFuzzer says of the whole run."""
    found = dict(re.findall(r"stat::(\w+): +(\d+)", report))
    cover = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", report)
    last = cover[-1] if cover else ("0", "0", "0")
    return {
        "executions": int(found.get("number_of_executed_units", 0)),
        "new_inputs": int(found.get("new_units_added", 0)),
        "edges": int(last[0]),
        "features": int(last[1]),
        "corpus": int(last[2]),
    }


def broken(report: str) -> list[str]:
    """What libFuzzer found, and the input that shows it."""
    what = re.findall(r"broken: .*|ERROR: .*|runtime error: .*", report)
    return [*what, *re.findall(r"Test unit written to (\S+)", report)]


def beside(until: float, kept: Path, found: list[str]) -> dict[str, dict[str, int]]:
    """Frames and readers by turns, until that time of time.monotonic."""
    judged = read = 0
    first = seed = time.time_ns() % 2**32
    some = frames.known(kept)
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    programs = Programs(cpu)
    folder = BUILD / "read"
    folder.mkdir(exist_ok=True)
    turn_seconds = (until - time.monotonic()) / TURNS
    while (now := time.monotonic()) < until and len(found) < MOST_FOUND:
        until_then = min(until, now + turn_seconds)
        count, differences = frames.differences(
            some, programs, range(seed, seed + SEEDS), until_then
        )
        judged += count
        until_then = min(until, time.monotonic() + turn_seconds)
        count, unread = readers.search(folder, BUILD, seed, until_then)
        read += count
        found += [*differences, *unread]
        seed += SEEDS
    programs.close()
    return {"frames": {"judged": judged, "first_seed": first}, "readers": {"read": read}}


def main(minutes: float, write: bool) -> int:
    """Fuzzes for so long."""
    fuzzer = build()
    for folder in ("known", "small"):
        shutil.rmtree(BUILD / folder, ignore_errors=True)
    new, small, known = BUILD / "found", BUILD / "small", unpack(BUILD / "known")
    new.mkdir(exist_ok=True)
    print(f"{minutes:g} minutes, {len(list(known.iterdir()))} inputs to begin with", flush=True)
    limits = [f"-max_total_time={round(60 * minutes)}", f"-max_len={LONGEST_INPUT}"]
    until = time.monotonic() + 60 * minutes
    report = BUILD / "report"
    found: list[str] = []
    with report.open("w") as out:
        arguments = [*limits, "-print_final_stats=1", str(new), str(known)]
        process = subprocess.Popen(
            command(fuzzer, *arguments), stdout=out, stderr=subprocess.STDOUT
        )
        try:
            others = beside(until, known, found)
            code = process.wait()
        finally:
            process.kill()
    text = report.read_text(encoding="utf-8", errors="replace")
    if code:
        found += broken(text) or [f"libFuzzer ended with {code}: {report}"]
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "minutes": minutes,
        "decision": figures(text),
        **others,
        "found": found,
    }
    print(json.dumps(result, indent=1))
    if found:
        return 1
    if write:
        small.mkdir()
        code, text = run(fuzzer, "-merge=1", str(small), str(known), str(new))
        if code:
            print(text[-3000:])
            return 1
        pack(small)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("minutes", type=float)
    parser.add_argument("--write", action="store_true", help="the result, and the corpus")
    options = parser.parse_args()
    sys.exit(main(options.minutes, options.write))
