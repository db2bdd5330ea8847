// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* What ntpguard is measured against, in XDP: programs that do nothing, that only swap and send, that
 * know everything, and ntpguard's own limiter over a BPF LRU_HASH.
 */
#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../../bpf/ntpguard.h"

const volatile struct constants constants SEC(".rodata.constants");
struct inputs inputs;

#define SEPARATE __attribute__((noinline))

#include "../../bpf/packet.h"
#include "../../bpf/inputs.h"
#include "../../bpf/gcra.h"
#include "../../bpf/bounds.h"
#include "../../bpf/sources.h"
#include "../../bpf/policy.h"
#include "../../bpf/kod.h"
#include "../../bpf/account.h"
#include "../../bpf/trial.h"
#include "../../bpf/limit.h"

SEC("xdp")
int drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* The least that any answer has to do: addresses and ports the other way round. */
SEC("xdp")
int swap(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct iphdr *ipv4 = (void *)(ethernet + 1);
	struct ipv6hdr *ipv6 = (void *)(ethernet + 1);
	struct udphdr *udp;
	__u8 mac[ETH_ALEN];

	if ((void *)(ipv6 + 1) + sizeof(*udp) > end)
		return XDP_PASS;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		__be32 address = ipv4->saddr;
		ipv4->saddr = ipv4->daddr;
		ipv4->daddr = address;
		udp = (void *)(ipv4 + 1);
	} else {
		struct in6_addr address = ipv6->saddr;
		ipv6->saddr = ipv6->daddr;
		ipv6->daddr = address;
		udp = (void *)(ipv6 + 1);
	}
	__builtin_memcpy(mac, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, mac, ETH_ALEN);
	__be16 port = udp->source;
	udp->source = udp->dest;
	udp->dest = port;
	return XDP_TX;
}

/* Perfect knowledge: the bench's honest clients (198.18.0.0/15) and what is not NTP pass. */
SEC("xdp")
int oracle(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct iphdr *ipv4 = (void *)(ethernet + 1);

	if ((void *)(ipv4 + 1) > end)
		return XDP_PASS;
	if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		return XDP_DROP;
	if (ethernet->h_proto != bpf_htons(ETH_P_IP) || ipv4->protocol != IPPROTO_UDP)
		return XDP_PASS;
	return bpf_ntohl(ipv4->saddr) >> 17 == (198 << 8 | 18) >> 1 ? XDP_PASS : XDP_DROP;
}

/* What a source's state costs to reach: one bucket of a table as large as ntpguard's, read and written. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

SEC("xdp")
int touch(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ipv4 = (void *)(long)ctx->data + sizeof(struct ethhdr);

	if ((void *)(ipv4 + 1) > end)
		return XDP_DROP;
	__u32 index = (ipv4->saddr * 0x9e3779b97f4a7c15ULL >> 32) & constants.bucket_mask;
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &index);
	if (bucket) {
		*(volatile __u64 *)&bucket->key[0];
		*(volatile __u64 *)&bucket->stat[0] += 1;
	}
	return XDP_DROP;
}

/* ntpguard's own limiter with its sources in the kernel's LRU instead of its table. */
struct lru_source {
	__u64 tat;
	__u64 aux;
	__u64 stat;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct lru_source);
} lru_sources SEC(".maps");

static __always_inline void limit_lru(const struct running *running, const struct request *request,
				      struct decision *decision)
{
	__u64 key = request->packet->key;
	struct lru_source *source = bpf_map_lookup_elem(&lru_sources, &key);
	__u64 once = 1ULL << STAT_REQUESTS_SHIFT;

	if (!source) {
		struct lru_source fresh = {
			.tat = request->now + request->rule->limit.emission_interval,
			.stat = once,
		};
		bpf_map_update_elem(&lru_sources, &key, &fresh, BPF_NOEXIST);
		decide(decision, VERDICT_PASS, REASON_CONFORM);
		return;
	}
	__u64 seen = load(&source->aux), aux = seen;
	if (gcra(&source->tat, 0, &request->rule->limit, request->now, true) == GCRA_CONFORMS) {
		decide(decision, VERDICT_PASS, REASON_CONFORM);
		aux = AUX_SET(aux, EXCESS, 0);
	} else {
		aux = excess(running, request, chance(running->local),
			     source->stat >> STAT_REQUESTS_SHIFT, aux, decision);
		once |= 1ULL << STAT_EXCESS_SHIFT;
	}
	__sync_fetch_and_add(&source->stat, once);
	if (aux != seen)
		__sync_val_compare_and_swap(&source->aux, seen, aux);
}

SEC("xdp")
int lru(struct xdp_md *ctx)
{
	struct packet packet = {};
	struct decision decision = {};
	struct running running;

	if (parse(ctx, &packet) != PARSED_NTP || !packet.whole || !read_running(&running))
		return XDP_PASS;
	__u64 now_ns = clock_ns(running.local);
	struct request request = {
		.packet = &packet,
		.hash = keyed_hash(packet.key),
		.now_ns = now_ns,
		.now = gcra_clock(now_ns),
		.rule = rule_at(running.policy, 0, now_ns),
	};

	limit_lru(&running, &request, &decision);
	switch (account(&packet, &decision)) {
	case VERDICT_PASS:
		return XDP_PASS;
	case VERDICT_KOD:
		return kiss(ctx, &packet) ? XDP_TX : XDP_DROP;
	default:
		return XDP_DROP;
	}
}

char _license[] SEC("license") = "GPL";
