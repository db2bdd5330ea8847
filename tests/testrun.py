"""A program run over packets: as often as a test likes, or over live frames of an interface."""

import ctypes
from ctypes import c_uint32

from ntpguard.kernel.binding import TestRunOpts, check, library

F_TEST_XDP_LIVE_FRAMES = 1 << 1


class XdpMd(ctypes.Structure):
    """struct xdp_md (linux/bpf.h)."""

    _fields_ = [
        ("data", c_uint32),
        ("data_end", c_uint32),
        ("data_meta", c_uint32),
        ("ingress_ifindex", c_uint32),
        ("rx_queue_index", c_uint32),
        ("egress_ifindex", c_uint32),
    ]


def run(program: int, packet: bytes, repeat: int = 1) -> tuple[int, bytes]:
    """Runs the program over `packet`: its (last) return code and the packet afterwards. A repeated
    run sees the packet as the one before left it.
    """
    out = ctypes.create_string_buffer(len(packet) + 256)
    source = ctypes.create_string_buffer(packet, len(packet))
    options = TestRunOpts(
        sz=ctypes.sizeof(TestRunOpts),
        data_in=ctypes.addressof(source),
        data_size_in=len(packet),
        data_out=ctypes.addressof(out),
        data_size_out=len(out),
        repeat=repeat,
    )
    check(library().bpf_prog_test_run_opts(program, options), "test run")
    return options.retval, out.raw[: options.data_size_out]


def send_frames(program: int, packet: bytes, ifindex: int, count: int) -> None:
    """Runs the program `count` times over live frames of an interface (Linux 5.18): what it
    returns happens to them, and XDP_TX sends.
    """
    source = ctypes.create_string_buffer(packet, len(packet))
    context = XdpMd(data_end=len(packet), ingress_ifindex=ifindex)
    options = TestRunOpts(
        sz=ctypes.sizeof(TestRunOpts),
        data_in=ctypes.addressof(source),
        data_size_in=len(packet),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=ctypes.sizeof(context),
        repeat=count,
        flags=F_TEST_XDP_LIVE_FRAMES,
    )
    check(library().bpf_prog_test_run_opts(program, options), "sending frames")
