"""What is asked of each kernel, in a machine of its own: to verify the program, to judge requests, to
guard an interface; then to pass the tests named as arguments, those of the lab one at a time.
"""

import ctypes
import os
import subprocess
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
from tests.run import Part, command

LOG_LINES = 60
RB_POWER_OFF = 0x4321FEDC
PYTEST = (
    "-q",
    "--color=no",
    "--tb=short",
    "-p",
    "no:cacheprovider",
    "-p",
    "tests.kernels.outcomes",
)


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
    for words in (["up", "guarded"], ["status", "--brief"], ["down"]):
        code = main(words, standalone_mode=False)
        assert not code, f"exit code {code}"


def check() -> bool:
    """Every step, whatever became of the one before; whether all were right."""
    print("release:", os.uname().release)
    right = True
    for step in (verify, judge, operate):
        libbpf._messages.clear()
        try:
            step()
            print(f"{step.__name__}: ok")
        except (Exception, SystemExit):
            right = False
            log = [line for line in libbpf._messages if not line.startswith("libbpf: ")]
            print(*log[-LOG_LINES:], sep="\n")
            traceback.print_exc(limit=-1)
            print(f"{step.__name__}: failed")
    return right


def test(name: str, part: Part, *options: str) -> None:
    """Runs a part of the tests; its outcomes go out by the second serial port."""
    print(
        f"{name}: exit code",
        subprocess.run([*command(part), *PYTEST, *options]).returncode,
        flush=True,
    )


if __name__ == "__main__":
    sys.stderr = sys.stdout
    right = check()
    sys.stdout.flush()
    lab = tuple(path for path in sys.argv[1:] if path.startswith("tests/lab"))
    if right and lab:
        test("lab", Part(1, lab))
    if right:
        others = tuple(path for path in sys.argv[1:] if path not in lab)
        test("tests", Part(os.cpu_count() or 1, others), "--dist=load")
    ctypes.CDLL(None).reboot(RB_POWER_OFF)
