"""What bcc compiles: the program at the tracepoint kfree_skb, and the little that it includes.

bcc includes a handful of kernel headers by itself. They are given here, so that no kernel header is
needed: offsets come from the running kernel's BTF, never from the headers of another release.
"""

from pathlib import Path
from typing import Final

from ntpguard.policy.kinds import Network
from ntpguard.trace.btf import Types

HEADERS: Final = {
    "linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "linux/bpf_common.h": "",
    "linux/log2.h": "",
    "linux/version.h": "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
    "#define LINUX_VERSION_CODE KERNEL_VERSION(5, 15, 0)\n",
    # only the size of the ring buffer is counted in it
    "asm/page.h": "#define PAGE_SIZE 4096\n",
    "uapi/linux/bpf.h": "",
    "uapi/linux/if_packet.h": "",
    "linux/types.h": """#pragma once
typedef signed char __s8, s8;
typedef unsigned char __u8, u8;
typedef short __s16, s16;
typedef unsigned short __u16, u16, __be16, __le16, __sum16;
typedef int __s32, s32, pid_t;
typedef unsigned int __u32, u32, __be32, __wsum;
typedef long long __s64, s64;
typedef unsigned long long __u64, u64, __be64;
typedef __u64 __aligned_u64 __attribute__((aligned(8)));
typedef unsigned long size_t, uintptr_t;
typedef _Bool bool;
""",
}

SOURCE: Final = Path(__file__).with_name("kfree_skb.c")


def definitions(types: Types, port: int, cookie: int, only: Network | None = None) -> list[str]:
    """The compiler's -D flags: offsets in this kernel, the NTP port, our network namespace, and the
    prefix whose clients alone are watched.

    The tracepoint passes a reason from Linux 5.17 on, and the refusing socket from 6.11 on.
    """
    values = {
        "SKB_DATA": types.offset("sk_buff", "data"),
        "SKB_HEAD": types.offset("sk_buff", "head"),
        "SKB_NETWORK_HEADER": types.offset("sk_buff", "network_header"),
        "SKB_PROTOCOL": types.offset("sk_buff", "protocol"),
        "SKB_IIF": types.offset("sk_buff", "skb_iif"),
        "SKB_DEV": types.offset("sk_buff", "dev"),
        "DEVICE_NET": types.offset("net_device", "nd_net"),
        "SOCK_NET": types.offset("sock", "__sk_common") + types.offset("sock_common", "skc_net"),
        "NET_COOKIE": types.offset("net", "net_cookie"),
        "SOCK_PROTOCOL": types.offset("sock", "sk_protocol"),
        "SOCK_PORT": types.offset("sock", "__sk_common") + types.offset("sock_common", "skc_num"),
        # of all clients only: a socket does not tell whose datagram it gave
        "CAN_SEE_READS": int(not only and can_see_reads(types)),
        # without the tracepoint's own first one
        "PARAMETERS": types.parameters("btf_trace_kfree_skb") - 1,
        "NTP_PORT": port,
        "OUR_COOKIE": f"{cookie}ULL",
    }
    values |= _wanted(only) if only else {"WANTED": 0}
    return [f"-D{name}={value}" for name, value in values.items()]


def knows_reasons(types: Types) -> bool:
    """Whether this kernel tells why it drops (Linux 5.17)."""
    return types.parameters("btf_trace_kfree_skb") > 3


def can_see_reads(types: Types) -> bool:
    """Whether this kernel tells of what is read from a socket (Linux 6.3)."""
    return types.parameters("btf_trace_sock_recv_length") > 0


def _wanted(only: Network) -> dict[str, object]:
    """An address and a mask, each as two words in this machine's byte order."""
    address = int.from_bytes(only.network_address.packed.ljust(16, b"\0"), "little")
    mask = int.from_bytes(only.netmask.packed.ljust(16, b"\0"), "little")
    low = (1 << 64) - 1
    return {
        "WANTED": {4: 0x0800, 6: 0x86DD}[only.version],
        "ADDRESS_0": f"{address & low}ULL",
        "ADDRESS_1": f"{address >> 64}ULL",
        "MASK_0": f"{mask & low}ULL",
        "MASK_1": f"{mask >> 64}ULL",
    }
