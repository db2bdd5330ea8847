"""make fuzz MINUTES=n: the packet path in user space under libFuzzer, address and undefined sanitizers.

Builds, runs for so long, keeps a small corpus, and writes RESULT.json. The exit code is 1 if anything
was found; the input that breaks it lies in build/fuzz.
"""

import argparse
import json
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from tests.fuzz import policies, seeds

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build/fuzz"
CORPUS = HERE / "corpus.tar.xz"
RESULT = HERE / "RESULT.json"
LONGEST_INPUT = 4096
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


def run(fuzzer: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and report; what breaks it lies beside the fuzzer."""
    command = [str(fuzzer), f"-artifact_prefix={fuzzer.parent}/broken-", *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", text=True
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


def main(minutes: float, write: bool) -> int:
    """Fuzzes for so long."""
    fuzzer = build()
    found = BUILD / "found"
    found.mkdir(exist_ok=True)
    known = unpack(BUILD / "known")
    print(f"{minutes:g} minutes, {len(list(known.iterdir()))} inputs to begin with", flush=True)
    limits = [f"-max_total_time={round(60 * minutes)}", f"-max_len={LONGEST_INPUT}"]
    code, report = run(fuzzer, *limits, "-print_final_stats=1", str(found), str(known))
    (BUILD / "report").write_text(report, encoding="utf-8")
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "minutes": minutes,
        **figures(report),
        "broken": re.findall(r"broken: .*|ERROR: .*|runtime error: .*", report),
    }
    print(json.dumps(result, indent=1))
    if code:
        print(report[-6000:])
    elif write:
        small = BUILD / "small"
        small.mkdir(exist_ok=True)
        run(fuzzer, "-merge=1", str(small), str(known), str(found))
        pack(small)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if code else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("minutes", type=float)
    parser.add_argument("--write", action="store_true", help="the result, and the corpus")
    options = parser.parse_args()
    sys.exit(main(options.minutes, options.write))
