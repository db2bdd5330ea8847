// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The lab's load: `generate` makes requests out of live frames, `sink` counts the replies by kind of
 * client. Frames are recycled, so that every byte of each is written anew.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { FRAME_WORDS = 22, KINDS = 3 };

/* 90 bytes: Ethernet, IPv4, UDP without checksum, NTP; the last two bytes apart */
struct template
{
	__u32 words[FRAME_WORDS];
	__u16 rest;
};

const volatile struct template constants SEC(".rodata.constants");

struct replies {
	__u64 answered;
	__u64 kissed;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, struct replies);
} replies SEC(".maps");

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	struct template *frame = (void *)(long)ctx->data;

	if ((void *)frame + FRAME_WORDS * 4 + 2 > (void *)(long)ctx->data_end)
		return XDP_DROP;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		frame->words[i] = constants.words[i];
	frame->rest = constants.rest;
	return XDP_TX;
}

/* 203.0.113.0/24 polite, 198.18.1.0/24 hasty, 198.18.2.0/24 abuser; everybody else is real */
static __always_inline int kind_of(__u32 address)
{
	switch (bpf_ntohl(address) >> 8) {
	case 203 << 16 | 0 << 8 | 113:
		return 0;
	case 198 << 16 | 18 << 8 | 1:
		return 1;
	case 198 << 16 | 18 << 8 | 2:
		return 2;
	default:
		return -1;
	}
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct iphdr *ipv4 = (void *)(ethernet + 1);
	struct udphdr *udp = (void *)(ipv4 + 1);
	__u8 *ntp = (void *)(udp + 1);

	if ((void *)(ntp + 2) > end || ethernet->h_proto != bpf_htons(ETH_P_IP) ||
	    ipv4->protocol != IPPROTO_UDP || udp->source != bpf_htons(123))
		return XDP_PASS;
	__u32 kind = kind_of(ipv4->daddr);
	struct replies *count = bpf_map_lookup_elem(&replies, &kind);
	if (!count)
		return XDP_PASS;
	if (ntp[1])
		count->answered++;
	else
		count->kissed++;
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
