// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The bench's load, out of live frames: `flood` sends one stream as fast as it can, `mix` several at
 * their paces; `sink` counts what comes back. Frames are recycled, so that every byte of each is
 * written anew. One CPU sends.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum {
	WORDS = 14,
	STREAMS = 3,
	SOURCE_AT = 26 / 2,
	PAUSE_NS = 200000,
	STAMP_AT = 14 + 20 + 8 + 40
};

/* What is sent, and how. The sources are `count` neighbours: IPv4 addresses, or IPv6 /64s. */
struct stream {
	__u64 words[WORDS]; /* of the frame; the 4 bytes from 26 on are the source's */
	__u32 first;	    /* source, host byte order */
	__u32 sources;
	__u32 sum;	/* ones' complement sum of what the checksum covers but for the source */
	__u32 check_at; /* the checksum's place, in 2 bytes */
	__u32 in_order; /* one source after the other, not at random */
	__u32 burst;	/* so many at once; at least 1 */
	__u64 interval; /* ns between two; 0: as fast as it goes */
};

struct constants {
	struct stream streams[STREAMS];
	__u64 frames;  /* of flood: so many */
	__u64 seed;    /* of the choice of sources */
	__u32 dry;     /* made, and thrown away: the generator's own cost */
	__u32 used;    /* streams of mix */
	__u32 stamped; /* IPv4: the transmit timestamp says when the frame was made */
	__u32 pad;
};

const volatile struct constants constants SEC(".rodata.constants");

struct state {
	__u64 begin_ns;
	__u64 end_ns;
	__u64 random;
	__u64 clock_ns;
	__u64 next_ns[STREAMS];
	__u64 sent[STREAMS];
};

struct state state;

static __always_inline __u64 draw(void)
{
	state.random = state.random * 6364136223846793005ULL + 1442695040888963407ULL;
	return state.random;
}

static __always_inline void choose_source(const volatile struct stream *stream, __u32 index,
					  __u16 *frame)
{
	__u32 chosen;

	if (stream->in_order) {
		chosen = state.sent[index] % stream->sources;
	} else {
		chosen = (draw() >> 32) * stream->sources >> 32;
	}
	__u32 source = stream->first + chosen;
	__u16 high = bpf_htons(source >> 16), low = bpf_htons(source);
	__u32 sum = stream->sum + high + low;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	frame[SOURCE_AT] = high;
	frame[SOURCE_AT + 1] = low;
	frame[stream->check_at < WORDS * 4 ? stream->check_at : 0] = ~sum;
}

static __always_inline int make(__u32 index, struct xdp_md *ctx)
{
	const volatile struct stream *stream = &constants.streams[index];
	__u64 *frame = (void *)(long)ctx->data;

	if ((void *)(frame + WORDS) > (void *)(long)ctx->data_end)
		return XDP_DROP;
#pragma unroll
	for (int i = 0; i < WORDS; i++)
		frame[i] = stream->words[i];
	choose_source(stream, index, (__u16 *)frame);
	if (constants.stamped) {
		__u64 now = bpf_ktime_get_ns();
		__builtin_memcpy((void *)frame + STAMP_AT, &now, sizeof(now));
	}
	state.sent[index]++;
	return constants.dry ? XDP_DROP : XDP_TX;
}

SEC("xdp")
int flood(struct xdp_md *ctx)
{
	if (!state.sent[0]) {
		state.begin_ns = bpf_ktime_get_ns();
		state.random = constants.seed;
	} else if (state.sent[0] == constants.frames - 1) {
		state.end_ns = bpf_ktime_get_ns();
	}
	return make(0, ctx);
}

/* Time on the wire: it stands still while the CPU is another process's, since nothing is sent then.
 * Were it to go on, all that was due meanwhile would come at once.
 */
static __always_inline __u64 wire_clock(void)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 elapsed = now - state.end_ns;

	if (!state.begin_ns) {
		state.begin_ns = now;
		state.random = constants.seed;
		elapsed = 0;
	}
	state.end_ns = now;
	state.clock_ns += elapsed < PAUSE_NS ? elapsed : 0;
	return state.clock_ns;
}

/* The streams that keep a pace first; the rest of the time is the last one's. */
SEC("xdp")
int mix(struct xdp_md *ctx)
{
	__u64 now = wire_clock();

#pragma unroll
	for (__u32 i = 0; i < STREAMS; i++) {
		const volatile struct stream *stream = &constants.streams[i];
		if (i >= constants.used || now < state.next_ns[i])
			continue;
		/* a burst goes out at once, the time that it took to collect is the pause after it */
		if (state.sent[i] % stream->burst == stream->burst - 1)
			state.next_ns[i] += stream->burst * stream->interval;
		return make(i, ctx);
	}
	return XDP_DROP;
}

/* Whom a reply is for. */
enum { OTHERS, KNOWN, NEWCOMERS, KINDS };

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
int sink(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct iphdr *ipv4 = (void *)(ethernet + 1);
	struct ipv6hdr *ipv6 = (void *)(ethernet + 1);
	struct udphdr *udp;
	__u32 kind = OTHERS;

	if ((void *)(ipv6 + 1) > end)
		return XDP_PASS;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP) && ipv4->protocol == IPPROTO_UDP) {
		udp = (void *)(ipv4 + 1);
		__u32 network = bpf_ntohl(ipv4->daddr) >> 16;
		if (network == (198 << 8 | 18))
			kind = KNOWN;
		else if (network == (198 << 8 | 19))
			kind = NEWCOMERS;
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6) && ipv6->nexthdr == IPPROTO_UDP) {
		udp = (void *)(ipv6 + 1);
	} else {
		return XDP_PASS;
	}
	__u8 *ntp = (void *)(udp + 1);
	struct replies *count = bpf_map_lookup_elem(&replies, &kind);

	if (!count || (void *)(ntp + 16) > end || udp->source != bpf_htons(123))
		return XDP_PASS;
	/* a reference id; the stratum of a daemon without sources is 0 too */
	if (*(__be32 *)(ntp + 12) == bpf_htonl('R' << 24 | 'A' << 16 | 'T' << 8 | 'E'))
		count->kissed++;
	else
		count->answered++;
	return XDP_DROP;
}

enum { DELAYS = 8192, DELAY_SHIFT = 5 }; /* of 32 ns, up to a quarter of a millisecond */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DELAYS);
	__type(key, __u32);
	__type(value, __u64);
} delays SEC(".maps");

/* Where the stack takes over: how long ago the frame of a known client was made. It goes no further. */
SEC("tc")
int arrive(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	void *frame = (void *)(long)skb->data;
	struct iphdr *ipv4 = frame + sizeof(struct ethhdr);
	__u64 made;

	if (frame + STAMP_AT + sizeof(made) > end || ipv4->protocol != IPPROTO_UDP ||
	    bpf_ntohl(ipv4->saddr) >> 16 != (198 << 8 | 18))
		return TC_ACT_OK;
	__builtin_memcpy(&made, frame + STAMP_AT, sizeof(made));
	__u64 bin = (bpf_ktime_get_ns() - made) >> DELAY_SHIFT;
	__u32 key = bin < DELAYS ? bin : DELAYS - 1;
	__u64 *count = bpf_map_lookup_elem(&delays, &key);
	if (count)
		++*count;
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
