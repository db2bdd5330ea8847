// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Counts the received NTP packets that the stack drops, by cause, and reports some of them. bcc
 * compiles it (its map syntax, no kernel header); offsets come as -D from program.py. */

struct cause {
	u64 location;
	u32 reason;
	u32 interface;
};
struct drop {
	struct cause cause;
	u16 family;
	u16 port;
	u8 source[16];
	u32 unused;
};
BPF_HASH(causes, struct cause, u64, 1024);
BPF_HASH(ignored, u64, u8, 64);
BPF_ARRAY(budget, s64, 1);
BPF_RINGBUF_OUTPUT(drops, 16);

#define READ(type, from)                                                                           \
	({                                                                                         \
		type value = 0;                                                                    \
		bpf_probe_read_kernel(&value, sizeof(value), (void *)(from));                      \
		value;                                                                             \
	})

/* The network namespace of the socket that refused the packet, else of its interface. 0 is unknown:
 * UDP keeps other things in skb->dev of a packet that it has queued. */
static inline __attribute__((always_inline)) u64 namespace_of(u64 skb, u64 socket)
{
	u64 net = socket ? READ(u64, socket + SOCK_NET) :
			   READ(u64, READ(u64, skb + SKB_DEV) + DEVICE_NET);
	return net ? READ(u64, net + NET_COOKIE) : 0;
}

int raw_tracepoint__kfree_skb(struct bpf_raw_tracepoint_args *ctx)
{
	u64 skb = ctx->args[0], net;
	struct drop drop = {};
	u32 first = 0;
	u8 *headers;

	drop.cause.location = ctx->args[1];
#if PARAMETERS > 2
	drop.cause.reason = ctx->args[2];
#endif
	/* 0 in what this host sends, and in what XDP dropped before the stack saw it */
	drop.cause.interface = READ(u32, skb + SKB_IIF);
	if (!drop.cause.interface || ignored.lookup(&drop.cause.location))
		return 0;

	drop.family = READ(u16, skb + SKB_PROTOCOL);
	headers = (u8 *)READ(u64, skb + SKB_HEAD) + READ(u16, skb + SKB_NETWORK_HEADER);
	if (drop.family == __builtin_bswap16(0x0800)) {
		u32 ihl = READ(u8, headers) & 15;
		if (READ(u8, headers + 9) != 17 ||
		    (READ(u16, headers + 6) & __builtin_bswap16(0x1fff)))
			return 0;
		bpf_probe_read_kernel(drop.source, 4, headers + 12);
		headers += ihl * 4;
	} else if (drop.family == __builtin_bswap16(0x86dd)) {
		if (READ(u8, headers + 6) != 17)
			return 0;
		bpf_probe_read_kernel(drop.source, 16, headers + 8);
		headers += 40;
	} else {
		return 0;
	}
	if (READ(u16, headers + 2) != __builtin_bswap16(NTP_PORT))
		return 0;
	drop.port = READ(u16, headers);

	net = namespace_of(skb, PARAMETERS > 3 ? ctx->args[3] : 0);
	if (net && net != OUR_COOKIE)
		return 0;

	causes.atomic_increment(drop.cause);
	s64 *left = budget.lookup(&first);
	if (left && *left > 0) {
		__sync_fetch_and_add(left, -1);
		drops.ringbuf_output(&drop, sizeof(drop), 0);
	}
	return 0;
}
