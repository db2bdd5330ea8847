"""What bcc compiles: the program at the tracepoint kfree_skb, and the little that it includes.

bcc includes a handful of kernel headers by itself. They are given here, so that no kernel header is
needed: offsets come from the running kernel's BTF, never from the headers of another release.
"""

from pathlib import Path
from typing import Final

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


def definitions(types: Types, port: int, cookie: int) -> list[str]:
    """The compiler's -D flags: offsets in this kernel, the NTP port, our network namespace.

    The tracepoint passes a reason from Linux 5.17 on, and the refusing socket from 6.11 on.
    """
    values = {
        "SKB_HEAD": types.offset("sk_buff", "head"),
        "SKB_NETWORK_HEADER": types.offset("sk_buff", "network_header"),
        "SKB_PROTOCOL": types.offset("sk_buff", "protocol"),
        "SKB_IIF": types.offset("sk_buff", "skb_iif"),
        "SKB_DEV": types.offset("sk_buff", "dev"),
        "DEVICE_NET": types.offset("net_device", "nd_net"),
        "SOCK_NET": types.offset("sock", "__sk_common") + types.offset("sock_common", "skc_net"),
        "NET_COOKIE": types.offset("net", "net_cookie"),
        # without the tracepoint's own first one
        "PARAMETERS": types.parameters("btf_trace_kfree_skb") - 1,
        "NTP_PORT": port,
        "OUR_COOKIE": f"{cookie}ULL",
    }
    return [f"-D{name}={value}" for name, value in values.items()]
