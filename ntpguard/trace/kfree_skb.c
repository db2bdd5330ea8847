// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Counts the received NTP packets that the stack drops, by cause, and reports some of them; and what
 * the daemon reads and answers. bcc compiles it (its map syntax, no kernel header); offsets come as -D
 * from program.py. */

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

/* linux/socket.h */
enum { MSG_PEEK = 2, MSG_ERRQUEUE = 0x2000 };

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

/* Who sent an NTP request, or is sent an answer. */
struct client {
	u16 family;
	u16 port;
	u32 unused;
	u8 address[16];
};

static inline __attribute__((always_inline)) int is_wanted(struct client *client)
{
#if WANTED
	u64 *words = (u64 *)client->address;

	return client->family == __builtin_bswap16(WANTED) && (words[0] & MASK_0) == ADDRESS_0 &&
	       (words[1] & MASK_1) == ADDRESS_1;
#else
	return 1;
#endif
}

/* Whether a packet is UDP to the NTP port (answer: from it), of a client that is watched. */
static inline __attribute__((always_inline)) int is_ntp_at(u8 *headers, u64 skb, int answer,
							   struct client *client)
{
	client->family = READ(u16, skb + SKB_PROTOCOL);
	if (client->family == __builtin_bswap16(0x0800)) {
		u32 ihl = READ(u8, headers) & 15;
		if (READ(u8, headers + 9) != 17 ||
		    (READ(u16, headers + 6) & __builtin_bswap16(0x1fff)))
			return 0;
		bpf_probe_read_kernel(client->address, 4, headers + (answer ? 16 : 12));
		headers += ihl * 4;
	} else if (client->family == __builtin_bswap16(0x86dd)) {
		if (READ(u8, headers + 6) != 17)
			return 0;
		bpf_probe_read_kernel(client->address, 16, headers + (answer ? 24 : 8));
		headers += 40;
	} else {
		return 0;
	}
	if (READ(u16, headers + (answer ? 0 : 2)) != __builtin_bswap16(NTP_PORT))
		return 0;
	client->port = READ(u16, headers + (answer ? 2 : 0));
	return is_wanted(client);
}

static inline __attribute__((always_inline)) int is_ntp(u64 skb, int answer, struct client *client)
{
	u8 *headers = (u8 *)READ(u64, skb + SKB_HEAD) + READ(u16, skb + SKB_NETWORK_HEADER);

	return is_ntp_at(headers, skb, answer, client);
}

int raw_tracepoint__kfree_skb(struct bpf_raw_tracepoint_args *ctx)
{
	u64 skb = ctx->args[0], net;
	struct client client = {};
	struct drop drop = {};
	u32 first = 0;

	drop.cause.location = ctx->args[1];
#if PARAMETERS > 2
	drop.cause.reason = ctx->args[2];
#endif
	/* 0 in what this host sends, and in what XDP dropped before the stack saw it */
	drop.cause.interface = READ(u32, skb + SKB_IIF);
	if (!drop.cause.interface || ignored.lookup(&drop.cause.location) ||
	    !is_ntp(skb, 0, &client))
		return 0;
	drop.family = client.family;
	drop.port = client.port;
	__builtin_memcpy(drop.source, client.address, sizeof(drop.source));

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

/* When the stack had a client's last request. */
BPF_TABLE("lru_hash", struct client, u64, requests, 16384);
/* read by the daemon, answered */
BPF_ARRAY(fates, u64, 2);
/* answers by the logarithm of their microseconds */
BPF_ARRAY(delays, u64, 32);

int raw_tracepoint__netif_receive_skb(struct bpf_raw_tracepoint_args *ctx)
{
	u64 skb = ctx->args[0], now;
	struct client client = {};

	/* where the network header begins is written down later */
	if (!is_ntp_at((u8 *)READ(u64, skb + SKB_DATA), skb, 0, &client) ||
	    namespace_of(skb, 0) != OUR_COOKIE)
		return 0;
	now = bpf_ktime_get_ns();
	requests.update(&client, &now);
	return 0;
}

#if CAN_SEE_READS
/* Linux 6.3 */
int raw_tracepoint__sock_recv_length(struct bpf_raw_tracepoint_args *ctx)
{
	u64 socket = ctx->args[0];
	int length = ctx->args[1], flags = ctx->args[2], read = 0;

	if (length > 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE)) &&
	    READ(u16, socket + SOCK_PROTOCOL) == 17 && READ(u16, socket + SOCK_PORT) == NTP_PORT &&
	    namespace_of(0, socket) == OUR_COOKIE)
		fates.atomic_increment(read);
	return 0;
}
#endif

int raw_tracepoint__net_dev_queue(struct bpf_raw_tracepoint_args *ctx)
{
	u64 skb = ctx->args[0], microseconds;
	struct client client = {};
	int answered = 1, bits = 0;

	if (!is_ntp(skb, 1, &client))
		return 0;
	u64 *since = requests.lookup(&client);
	if (!since)
		return 0;
	microseconds = (bpf_ktime_get_ns() - *since) / 1000;
	requests.delete(&client);
	bits = bpf_log2l(microseconds);
	if (bits > 31)
		bits = 31;
	delays.atomic_increment(bits);
	fates.atomic_increment(answered);
	return 0;
}
