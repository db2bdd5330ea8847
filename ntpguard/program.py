"""The program of one interface: loaded on the maps that all share, attached, swapped, detached."""

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ntpguard import abi
from ntpguard.errors import NtpguardError
from ntpguard.kernel import bpffs as pinned
from ntpguard.kernel import interfaces, libbpf, maps
from ntpguard.kernel.binding import BpfError
from ntpguard.policy.compile import Compiled

ATTACH_FLAGS = {
    "auto": 0,
    "native": libbpf.XDP_FLAGS_DRV_MODE,
    "skb": libbpf.XDP_FLAGS_SKB_MODE,
}
FRAGS_SINCE = (5, 18)  # frames of several buffers: jumbo frames in native mode


def constants(
    table: abi.Table, compiled: Compiled, mac: bytes, *, inputs: bool = False
) -> abi.Constants:
    """Load-time constants of the program of an interface with this MAC address. `inputs`: clock and
    chance come from abi.Inputs, and there is no trial of KoDs: for a replay.
    """
    ports = [int.from_bytes(port.to_bytes(2, "big"), "little") for port in compiled.ports]
    ports += [ports[0]] * (abi.PORTS - len(ports))
    return abi.Constants(
        seed=table.seed,
        ipv6_mask=(abi.U64 << (64 - table.ipv6_prefix)) & abi.U64,
        bucket_mask=table.buckets - 1,
        ipv4_mask=(0xFFFFFFFF << (32 - table.ipv4_prefix)) & 0xFFFFFFFF,
        ports=(ctypes.c_uint16 * abi.PORTS)(*ports),
        mac=(ctypes.c_uint8 * 6)(*mac),
        ipv4_prefix=table.ipv4_prefix,
        test=abi.TEST_INPUTS | abi.TEST_NO_TRIAL if inputs else 0,
    )


def kernel_release() -> tuple[int, ...]:
    """Major and minor of the running kernel's version."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def load(program: libbpf.Object) -> None:
    """Loads a program that is open and sized, as this kernel wants it. Raises NtpguardError."""
    program.set_frags(maps.PROGRAM, kernel_release() >= FRAGS_SINCE)
    program.load()


@contextmanager
def loaded(
    at: Path,
    one: interfaces.Interface,
    descriptors: dict[str, int],
    table: abi.Table,
    compiled: Compiled,
) -> Iterator[libbpf.Object]:
    """The program for one interface on the shared maps, and on its counters if it has some; closed
    again. Raises NtpguardError.
    """
    counters = pinned.interface_pins(at, one.ifindex) / "counters"
    with libbpf.Object(maps.object_path()) as program:
        program.set_constants(bytes(constants(table, compiled, one.mac)))
        for name, fd in descriptors.items():
            program.reuse_map(name, fd)
        if counters.exists():
            with maps.descriptor(counters) as fd:
                program.reuse_map("counters", fd)
        load(program)
        yield program


def attach(own: Path, one: interfaces.Interface, program: libbpf.Object, xdp: str) -> None:
    """Attaches a loaded program in the XDP mode `xdp` (auto, native, skb) and pins it in `own`, the
    link last. Raises NtpguardError; what is pinned by then, the caller removes.
    """
    own.mkdir(mode=0o700)
    fd = program.program_fd(maps.PROGRAM)
    libbpf.obj_pin(program.map_fd("counters"), own / "counters")
    libbpf.obj_pin(fd, own / "program")
    link = _link(fd, one, xdp)
    try:
        libbpf.obj_pin(link, own / "link")
    finally:
        os.close(link)


def swap(own: Path, program: libbpf.Object, held: ExitStack, undo: ExitStack) -> None:
    """Puts a loaded program in the place of the one whose link is pinned in `own`, at once. `undo`
    puts that one back, while `held` has not ended.
    """
    link = held.enter_context(maps.descriptor(own / "link"))
    # absent or another one where an earlier swap was killed half-way: then there is no way back
    if (own / "program").exists():
        old = held.enter_context(maps.descriptor(own / "program"))
        if libbpf.prog_info(old).id == libbpf.link_info(link).prog_id:
            undo.callback(_pin_program, own, old)
            undo.callback(libbpf.link_update, link, old)
    new = program.program_fd(maps.PROGRAM)
    libbpf.link_update(link, new)
    _pin_program(own, new)


def _pin_program(own: Path, fd: int) -> None:
    (own / "program").unlink(missing_ok=True)
    libbpf.obj_pin(fd, own / "program")


def _link(program: int, one: interfaces.Interface, xdp: str) -> int:
    try:
        return libbpf.link_create(program, one.ifindex, ATTACH_FLAGS[xdp])
    except BpfError as error:
        if not interfaces.interfaces_of([one.ifindex]):
            gone = f"{one.name}: gone while it was being attached: when it is back"
            raise NtpguardError(f"{gone}: ntpguard up {one.name}") from None
        # these come with a remedy of their own
        told = error.errno in (errno.EOPNOTSUPP, errno.EBUSY, errno.ENOMEM)
        remedy = "" if told or xdp == "skb" else ": try --xdp skb"
        raise NtpguardError(f"{one.name}: {error}{remedy}") from None


def detach(own: Path) -> None:
    """Detaches the program whose link is pinned in `own`. Raises NtpguardError."""
    with maps.descriptor(own / "link") as fd:
        (own / "link").unlink()  # first: a link that is pinned is enforcement
        libbpf.link_detach(fd)


def name_on(one: interfaces.Interface) -> str | None:
    """Name of the XDP program on an interface, "?" if it cannot be told; None: there is none."""
    if one.program_id is None:
        return None
    try:
        fd = libbpf.prog_by_id(one.program_id)
        try:
            return str(libbpf.prog_info(fd).name.decode())
        finally:
            os.close(fd)
    except NtpguardError:
        return "?"  # it may have gone meanwhile
