// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The lab's load: `generate` makes requests out of live frames, `sink` counts the replies by kind of
 * client. Frames are recycled, so that every byte of each is written anew.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
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

enum { POLITE, HASTY, ABUSER, REAL };

/* whom a reply of the server is for, and its UDP header */
struct reply {
	struct udphdr *udp;
	int kind;
};

/* 203.0.113.0/24 polite, 198.18.1.0/24 hasty, 198.18.2.0/24 abuser; everybody else is real */
static __always_inline struct reply of_ipv4(struct iphdr *ipv4)
{
	struct reply reply = {.udp = (void *)(ipv4 + 1), .kind = REAL};

	if (ipv4->protocol != IPPROTO_UDP)
		return reply;
	switch (bpf_ntohl(ipv4->daddr) >> 8) {
	case 203 << 16 | 0 << 8 | 113:
		reply.kind = POLITE;
		break;
	case 198 << 16 | 18 << 8 | 1:
		reply.kind = HASTY;
		break;
	case 198 << 16 | 18 << 8 | 2:
		reply.kind = ABUSER;
		break;
	}
	return reply;
}

/* 2001:db8:71::/48 polite */
static __always_inline struct reply of_ipv6(struct ipv6hdr *ipv6)
{
	struct reply reply = {.udp = (void *)(ipv6 + 1), .kind = REAL};
	struct in6_addr *to = &ipv6->daddr;

	if (ipv6->nexthdr == IPPROTO_UDP && to->s6_addr32[0] == bpf_htonl(0x20010db8) &&
	    to->s6_addr16[2] == bpf_htons(0x71))
		reply.kind = POLITE;
	return reply;
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	void *ip = ethernet + 1;
	struct reply reply = {.kind = REAL};

	if (ip + sizeof(struct ipv6hdr) > end)
		return XDP_PASS;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		reply = of_ipv4(ip);
	else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		reply = of_ipv6(ip);
	if (reply.kind == REAL)
		return XDP_PASS;

	__u8 *ntp = (void *)(reply.udp + 1);
	__u32 kind = reply.kind;
	struct replies *count = bpf_map_lookup_elem(&replies, &kind);

	if (!count || (void *)(ntp + 2) > end || reply.udp->source != bpf_htons(123))
		return XDP_PASS;
	if (ntp[1])
		count->answered++;
	else
		count->kissed++;
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
