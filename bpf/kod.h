/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The request rewritten, in place and at the same size, into a Kiss-o'-Death RATE reply (RFC 4330, 8;
 * RFC 5905, 7.4) in ntpd's echo form, the only one that every client which honours a KoD accepts:
 * origin = receive = transmit = the request's transmit timestamp.
 */
#ifndef NTPGUARD_KOD_H
#define NTPGUARD_KOD_H

enum {
	KOD_LI_VN_MODE = 3 << 6 | 4, /* leap indicator 3, mode 4; the version is the request's */
	KOD_POLL_MIN = 6,
	KOD_POLL_MAX = 10, /* ntpd keeps what it is told until it restarts */
	KOD_PRECISION = -23,
	KOD_TTL = 64,
	KOD_SOURCE_PORT_MIN =
		1024, /* but for port 123: below are the services a reply could loop with */
	NTP_PORT = 123,
};

static __always_inline bool is_unicast_source(const struct packet *packet)
{
	if (packet->family == FAMILY_IPV4) {
		__u8 first = packet->source.bytes[12];
		return first && first != 127 && first < 224;
	}
	return packet->source.bytes[0] != 0xff && packet->key != NTPGUARD_KEY_ZERO_TAG;
}

/* Whether a KoD would be honoured by anyone, and could harm no one (protocol.md 2.3). */
static __always_inline bool is_kissable(const struct packet *packet)
{
	const struct ntp_header *ntp = &packet->ntp;
	__u16 source_port = bpf_ntohs(packet->source_port);

	return packet->mode == MODE_NTP_CLIENT && packet->version >= 1 && packet->version <= 4 &&
	       packet->payload == NTPGUARD_HEADER_BYTES && packet->plain &&
	       (ntp->transmit_timestamp[0] || ntp->transmit_timestamp[1]) &&
	       (source_port == NTP_PORT || source_port >= KOD_SOURCE_PORT_MIN) && !packet->group &&
	       is_unicast_source(packet) && address_flags(&packet->destination) & ADDRESS_LOCAL &&
	       !(address_flags(&packet->source) & ADDRESS_LOCAL);
}

static __always_inline __u64 add_words(__u64 sum, const void *from, __u32 words)
{
	const __be32 *word = from;

	for (__u32 i = 0; i < words; i++)
		sum += word[i];
	return sum;
}

/* RFC 1071 */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline void answer_ethernet(struct ethhdr *ethernet)
{
	__u8 client[ETH_ALEN];

	__builtin_memcpy(client, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, client, ETH_ALEN);
}

/* Returns the sum of the pseudo header's addresses, which swapping does not change. */
static __always_inline __u64 answer_ipv4(struct iphdr *ipv4)
{
	__be32 client = ipv4->saddr;

	ipv4->saddr = ipv4->daddr;
	ipv4->daddr = client;
	ipv4->tos = 0;
	ipv4->ttl = KOD_TTL;
	ipv4->frag_off &= bpf_htons(IPV4_FLAG_DF);
	ipv4->check = 0;
	ipv4->check = fold(add_words(0, ipv4, sizeof(*ipv4) / 4));
	return (__u64)ipv4->saddr + ipv4->daddr;
}

static __always_inline __u64 answer_ipv6(struct ipv6hdr *ipv6)
{
	struct in6_addr client = ipv6->saddr;

	ipv6->saddr = ipv6->daddr;
	ipv6->daddr = client;
	*(__be32 *)ipv6 = bpf_htonl(6U << 28); /* traffic class and flow label 0 */
	ipv6->hop_limit = KOD_TTL;
	return add_words(0, &ipv6->saddr, 8);
}

static __always_inline void answer_ntp(struct ntp_header *ntp, __u8 version)
{
	__s8 poll = ntp->poll;

	ntp->li_vn_mode = KOD_LI_VN_MODE | version << 3;
	ntp->stratum = 0;
	ntp->poll = poll < KOD_POLL_MIN ? KOD_POLL_MIN : poll > KOD_POLL_MAX ? KOD_POLL_MAX : poll;
	ntp->precision = KOD_PRECISION;
	ntp->root_delay = 0;
	ntp->root_dispersion = 0;
	ntp->reference_id = bpf_htonl('R' << 24 | 'A' << 16 | 'T' << 8 | 'E');
	/* an echoed reference timestamp would declare NTPv5 */
	ntp->reference_timestamp[0] = 0;
	ntp->reference_timestamp[1] = 0;
	for (int i = 0; i < 2; i++) {
		ntp->origin_timestamp[i] = ntp->transmit_timestamp[i];
		ntp->receive_timestamp[i] = ntp->transmit_timestamp[i];
	}
}

/* The checksum is computed from scratch: the received one may be partial. IPv4's "none" stays none. */
static __always_inline void answer_udp(struct udphdr *udp, __u8 family, __u64 pseudo)
{
	__be16 client = udp->source;
	bool none = family == FAMILY_IPV4 && !udp->check;

	udp->source = udp->dest;
	udp->dest = client;
	udp->check = 0;
	if (none)
		return;
	pseudo += bpf_htons(IPPROTO_UDP) + udp->len;
	__u16 check = fold(
		add_words(pseudo, udp, (sizeof(*udp) + NTPGUARD_HEADER_BYTES) / sizeof(__u32)));
	udp->check = check ? check : 0xffff; /* RFC 768: 0 means none */
}

/* Of a packet that is_kissable, hence plain. The bounds are known to hold; the verifier is told again. */
static __always_inline bool kiss(struct xdp_md *ctx, const struct packet *packet)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	void *ip = (void *)(ethernet + 1) + (packet->tags & 3) * sizeof(struct vlan_tag);
	struct iphdr *ipv4 = ip;
	struct ipv6hdr *ipv6 = ip;
	struct udphdr *udp =
		packet->family == FAMILY_IPV4 ? (void *)(ipv4 + 1) : (void *)(ipv6 + 1);
	struct ntp_header *ntp = (void *)(udp + 1);

	if ((void *)(ethernet + 1) > end || (void *)(ntp + 1) > end)
		return false;
	__u64 pseudo = packet->family == FAMILY_IPV4 ? answer_ipv4(ipv4) : answer_ipv6(ipv6);
	answer_ethernet(ethernet);
	answer_ntp(ntp, packet->version);
	answer_udp(udp, packet->family, pseudo);
	return true;
}

enum {
	HEED_WITHIN = ((2ULL * 1000000000) >> KOD_UNIT_SHIFT) + 1, /* 2 s, rounded up */
	DEAF_FOR = (15ULL * 60 * 1000000000) >> KOD_UNIT_SHIFT,	   /* 15 minutes without excess */
	UNHEEDED_EXCESS = 2,
	AFTER_TOLD = 3, /* no excess, and nothing more to tell of heeding */
};

static __always_inline __u16 kod_clock(__u64 now_ns)
{
	__u16 now = now_ns >> KOD_UNIT_SHIFT;

	return now ? now : 1; /* 0 is never */
}

/* What an excess request changes in its source's memory of KoDs; tells whether a KoD is due. */
static __always_inline bool kod_due(__u64 *aux, const struct policy *policy, __u16 now)
{
	__u64 excess = AUX_GET(*aux, EXCESS);
	__u16 last = AUX_GET(*aux, KOD_TIME);
	__u16 elapsed = now - last;
	__u64 unheeded = AUX_GET(*aux, UNHEEDED);
	__u64 after = AUX_GET(*aux, AFTER_KOD);

	if (excess < (1 << AUX_EXCESS_BITS) - 1)
		excess++;
	*aux = AUX_SET(*aux, EXCESS, excess);
	if (last) {
		if (elapsed > DEAF_FOR) {
			unheeded = 0;
			after = AFTER_TOLD;
		} else if (unheeded >= policy->kod_patience) {
			*aux = AUX_SET(*aux, KOD_TIME, now);
			return false;
		} else if (elapsed >= HEED_WITHIN && after != UNHEEDED_EXCESS) {
			after = after == AFTER_TOLD ? 1 : after + 1;
			unheeded += after == UNHEEDED_EXCESS;
		}
		*aux = AUX_SET(*aux, UNHEEDED, unheeded);
		*aux = AUX_SET(*aux, AFTER_KOD, after);
	}
	return excess <= policy->kod_flood && unheeded < policy->kod_patience &&
	       (!last || elapsed >= policy->kod_interval);
}

/* A KoD is heeded if the next request of its source that is later than HEED_WITHIN conforms. That is
 * all that can be told: who would have slowed down anyway is counted (hence the control group), who
 * never comes again is not, and one slightly over its limit may conform by luck. A source that slows
 * down and falls back before its next KoD counts as both heeding and not.
 */
static __always_inline bool is_heeded(__u64 aux, __u16 now)
{
	__u16 last = AUX_GET(aux, KOD_TIME);
	__u16 elapsed = now - last;

	return last && !AUX_GET(aux, AFTER_KOD) && elapsed >= HEED_WITHIN;
}

#endif
