"""What is asked of each kernel: to verify the program, to judge requests, to guard an interface.

Runs alone in a machine (argument "alone"), or in tests/private; then names every file it needed.
"""

import ctypes
import os
import sys
import traceback

from pyroute2 import IPRoute

from ntpguard import abi
from ntpguard.cli import main
from ntpguard.kernel import libbpf, maps
from ntpguard.policy.check import DEFAULT
from ntpguard.policy.compile import compile_policy
from ntpguard.program import constants, load
from tests.bpf import guard, packets
from tests.kernels import opened

LOG_LINES = 60
RB_POWER_OFF = 0x4321FEDC
SYS_FINIT_MODULE = 313  # x86-64


def verify() -> None:
    """Loads as `ntpguard up` does; prints how many instructions the verifier walked."""
    shape = compile_policy(DEFAULT)
    table = abi.Table(buckets=1024, ipv4_prefix=32, ipv6_prefix=64)
    with libbpf.Object(maps.object_path()) as program:
        program.set_constants(bytes(constants(table, shape, packets.SERVER_MAC)))
        program.set_max_entries("sources", table.buckets)
        print(guard.load_with_log(program, lambda: load(program)))


def judge() -> None:
    """A request that conforms, and one that does not, to a virtual clock."""
    with guard.guard() as one:
        one.set_rules(guard.rule(per_second=1, burst=1, leak=0))
        assert one.run(packets.IPV4) == (abi.Xdp.PASS, bytes(packets.IPV4))
        assert one.run(packets.IPV4) == (abi.Xdp.TX, packets.kod(packets.IPV4))


def operate() -> None:
    """The operator's own commands, on an interface of a driver with native XDP."""
    with IPRoute() as ip:
        ip.link("add", ifname="guarded", kind="veth", peer={"ifname": "peer"})
    for command in (["up", "guarded"], ["status", "--brief"], ["down"]):
        code = main(command, standalone_mode=False)
        assert not code, f"exit code {code}"


def check() -> None:
    """Every step, whatever became of the one before."""
    print("release:", os.uname().release)
    for step in (verify, judge, operate):
        libbpf._messages.clear()
        try:
            step()
            print(f"{step.__name__}: ok")
        except (Exception, SystemExit):
            log = [line for line in libbpf._messages if not line.startswith("libbpf: ")]
            print(*log[-LOG_LINES:], sep="\n")
            traceback.print_exc(limit=-1)
            print(f"{step.__name__}: failed")


def files() -> set[str]:
    """What this process has needed: modules, libraries, and what else it opened."""
    modules = list(sys.modules.values())
    found = {getattr(one, name, None) for one in modules for name in ("__file__", "__cached__")}
    with open("/proc/self/maps", encoding="utf-8") as mapped:
        found |= {line.split()[-1] for line in mapped}
    real = {one for one in found | opened if isinstance(one, str) and os.path.isabs(one)}
    return {one for one in real if os.path.isfile(one) and one.split("/")[1] not in ("proc", "sys")}


if __name__ == "__main__":
    sys.stderr = sys.stdout
    if sys.argv[1:] == ["alone"]:
        libc = ctypes.CDLL(None)
        for kind, where in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"bpf", b"/sys/fs/bpf")):
            libc.mount(kind, where, kind, 0, None)
        with open("/veth.ko", "rb") as module:
            libc.syscall(SYS_FINIT_MODULE, module.fileno(), b"", 0)
        check()
        sys.stdout.flush()
        libc.reboot(RB_POWER_OFF)
    check()
    print(*sorted(files()), sep="\n")
