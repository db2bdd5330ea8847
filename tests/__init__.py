"""Tests: everything real, in namespaces of their own."""

import sys
from pathlib import Path

# the command of the environment that the tests run in
NTPGUARD = str(Path(sys.executable).with_name("ntpguard"))
