"""A few seconds of the soak itself."""

import re
import subprocess
import sys

from tests.lab.lab import ROOT
from tests.lab.test_lab import pytestmark

__all__ = ["pytestmark"]


def test_a_short_soak_is_well() -> None:
    command = [sys.executable, "-m", "tests.soak", "2", "--seconds", "6", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "soaked: well" in done.stdout
    assert len(re.findall(r"polite +\d", done.stdout)) == 2
