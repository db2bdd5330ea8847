"""The tests' own BPF programs, compiled as ntpguard's is; CLANG names another compiler."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

INCLUDE = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}"
CLANG = (
    *(os.environ.get("CLANG", "clang"), "-O2", "-g", "-target", "bpfel", "-mcpu=v3"),
    *("-fno-strict-aliasing", INCLUDE),
)


def compile_bpf(source: Path, made: Path) -> Path:
    """Compiles `source` into the object `made`; returns that."""
    subprocess.run([*CLANG, "-c", str(source), "-o", str(made)], check=True)
    return made


if __name__ == "__main__":
    compile_bpf(Path(sys.argv[1]), Path(sys.argv[2]))
