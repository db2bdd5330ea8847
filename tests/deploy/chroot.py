"""A Debian of its own to install into: an overlay over what tests/deploy/debootstrap made, with its
own /run and bpffs, in the network namespace of the test.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
MOUNTS = (
    ("proc", "proc", "proc"),
    ("sysfs", "sys", "sysfs"),
    ("bpf", "sys/fs/bpf", "bpf"),
    ("tmpfs", "run", "tmpfs"),
)


@dataclass(frozen=True)
class Chroot:
    """`path` is its root as seen from here."""

    path: Path

    def command(self, *words: str) -> list[str]:
        """What runs `words` inside, with no more of this environment than a terminal has."""
        inside = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb"]
        noninteractive = "DEBIAN_FRONTEND=noninteractive"
        return ["chroot", str(self.path), "env", "-i", *inside, noninteractive, *words]

    def run(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Runs to the end; asserts the exit code, unless that is None. Both streams in `stdout`."""
        done = subprocess.run(
            self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}"
        return done

    def __truediv__(self, inside: str) -> Path:
        """The path from here of an absolute path inside."""
        return self.path / inside.lstrip("/")


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


@contextmanager
def debian(suite: str) -> Iterator[Chroot]:
    """A fresh one, for a test in tests/private; it is gone afterwards."""
    base = ROOT / "build/deploy" / suite / "root"
    assert (base.parent / "done").exists(), (
        f"{base}: not there: try tests/deploy/debootstrap {suite}"
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        root = folder / "root"
        layers = f"lowerdir={base},upperdir={folder / 'upper'},workdir={folder / 'work'}"
        _mount("-t", "overlay", "overlay", "-o", layers, str(root))
        stack.callback(subprocess.run, ["umount", "--recursive", "--lazy", str(root)], check=True)
        for kind, where, name in MOUNTS:
            _mount("-t", kind, name, str(root / where))
        yield Chroot(root)
