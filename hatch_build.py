"""Build hook: compiles the BPF program into the package: no protected host needs a compiler."""

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OBJECT = "ntpguard/ntpguard.bpf.o"


class CustomBuildHook(BuildHookInterface):
    """clang -target bpfel: one object for every little-endian machine, hence a pure wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles. Raises SystemExit with clang's own words if it cannot."""
        root = Path(self.root)
        multiarch = sysconfig.get_config_var("MULTIARCH") or ""
        command = [
            "clang", "-O2", "-g", "-target", "bpfel", "-mcpu=v3", "-fno-strict-aliasing",
            "-Wall", "-Wextra", "-Werror",
            f"-I/usr/include/{multiarch}",
            f"-ffile-prefix-map={root}=.",
            "-c", str(root / "bpf" / "ntpguard.bpf.c"), "-o", str(root / OBJECT),
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            raise SystemExit("clang: not found: try apt-get install clang libbpf-dev") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"clang: exit code {error.returncode}: see above") from None
        build_data["artifacts"].append(f"/{OBJECT}")
