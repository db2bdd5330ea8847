"""The system calls with which a command changes something are those that it is interrupted at."""

import re
import shlex
import subprocess
from pathlib import Path

from tests import NTPGUARD
from tests.bpf.daemon import running
from tests.bpf.interrupted import CALLS
from tests.bpf.test_interruption import CHANGES
from tests.bpf.test_lifecycle import NAMES, pytestmark, where
from tests.faults.test_pins import FILE

__all__ = ["pytestmark", "where"]
# every call by which something is changed that outlives the process, as strace calls them
CHANGING = (
    "bpf,flock,fsync,fdatasync,sync,syncfs,mkdir,mkdirat,rmdir,rename,renameat,renameat2,unlink,"
    "unlinkat,link,linkat,symlink,symlinkat,mknod,mknodat,truncate,ftruncate,fallocate,chmod,"
    "fchmod,fchmodat,chown,fchown,lchown,fchownat,setxattr,lsetxattr,fsetxattr,removexattr,"
    "utimensat,mount,umount2,sethostname,settimeofday,clock_settime,init_module,finit_module"
)
STRACE = ("strace", "-f", "-qqq", "-e", f"trace={CHANGING}", "-e", "signal=none")


def names(log: Path) -> set[str]:
    return set(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.M))


def test_no_state_changing_call_of_a_command_is_left_out(where: Path, tmp_path: Path) -> None:
    file, log = tmp_path / "ntpguard.toml", tmp_path / "log"
    file.write_text(FILE)
    up = ("up", *NAMES, "--policy", str(file))
    live = [CHANGES[name][0] for name in ("block", "clear", *(CHANGES.keys() - {"block", "clear"}))]
    lines = [up, up, *live, ("policy", "apply", str(file)), ("down", NAMES[0]), ("down",)]
    script = " && ".join(shlex.join([NTPGUARD, *one]) for one in lines)
    subprocess.run(
        [*STRACE, "-o", str(log), "sh", "-ec", script], check=True, stdout=subprocess.DEVNULL
    )
    found = names(log)
    assert found <= CALLS.keys()
    assert found >= {"bpf", "flock", "mkdir", "rename", "unlink", "unlinkat", "rmdir"}


def test_no_state_changing_call_of_the_daemon_is_left_out(where: Path, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    traced = (*STRACE, "-D", "-o", str(log), NTPGUARD)
    with running(tmp_path, policy=f'on_exit = "detach"\n{FILE}', command=traced) as one:
        one.reload(one.file.read_text() + '[limit]\nrate = "7/minute"\n')
        one.logs("applied")
    found = names(log)
    assert found <= CALLS.keys()
    assert found >= {"bpf", "flock", "fsync", "rename"}
