/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* A cursor walks the frame: Ethernet, VLAN tags, IPv4 or IPv6, UDP, NTP. What is not UDP to a guarded
 * port leaves here, at the earliest test that tells. What comes out are facts, no pointers: so the
 * verifier checks the decision once, and not for every way through the parser.
 */
#ifndef NTPGUARD_PACKET_H
#define NTPGUARD_PACKET_H

enum { VLAN_TAGS = 2, EXTENSION_HEADERS = 8 };
enum { IPV4_FLAG_DF = 0x4000, IPV4_MORE_OR_OFFSET = 0x3fff };
enum { MODE_NTP_CLIENT = 3 };

struct vlan_tag {
	__be16 tci;
	__be16 encapsulated;
};

struct extension_header {
	__u8 next;
	__u8 length; /* in units of 8 bytes, the first not counted (RFC 8200, 4) */
};

/* RFC 5905, 7.3 */
struct ntp_header {
	__u8 li_vn_mode;
	__u8 stratum;
	__s8 poll;
	__s8 precision;
	__be32 root_delay;
	__be32 root_dispersion;
	__be32 reference_id;
	__be32 reference_timestamp[2];
	__be32 origin_timestamp[2];
	__be32 receive_timestamp[2];
	__be32 transmit_timestamp[2];
};
_Static_assert(sizeof(struct ntp_header) == NTPGUARD_HEADER_BYTES, "RFC 5905, 7.3");

enum parsed {
	PARSED_OTHER,	  /* not for us: passes untouched, uncounted */
	PARSED_ODD,	  /* UDP perhaps, but its ports cannot be seen (in this buffer) */
	PARSED_MALFORMED, /* UDP to a guarded port, lengths or checksum impossible */
	PARSED_NTP,
};

struct packet {
	struct address source; /* IPv4 mapped */
	struct address destination;
	__u64 key; /* of the source */
	union {
		struct ntp_header ntp; /* if whole */
		__u64 words[NTPGUARD_HEADER_BYTES / sizeof(__u64)];
	};
	__u32 payload; /* bytes, as UDP says */
	__u32 frame;   /* bytes */
	__u32 family;
	__u32 mode;
	__u32 version;
	__u32 tags; /* VLAN */
	__be16 source_port;
	__u8 ttl;   /* or hop limit */
	bool plain; /* no IP options, no extension headers, no more in it than the datagram */
	bool whole; /* a whole NTP header is in the frame and in the datagram */
	bool group; /* the source MAC is no station's */
};

static __always_inline void map_ipv4(struct address *address, __be32 ipv4)
{
	address->words[0] = 0;
	address->words[1] = 0;
	address->words[2] = bpf_htonl(0xffff);
	address->words[3] = ipv4;
}

static __always_inline bool is_guarded_port(__be16 port)
{
	return port == constants.ports[0] || port == constants.ports[1] ||
	       port == constants.ports[2] || port == constants.ports[3];
}

/* Trusts the lengths of IP and UDP, not the frame's: Ethernet pads. */
static __always_inline enum parsed parse_udp(struct packet *packet, void *at, void *end,
					     __u32 ip_payload)
{
	struct udphdr *udp = at;

	if ((void *)(udp + 1) > end)
		return PARSED_ODD;
	if (!is_guarded_port(udp->dest))
		return PARSED_OTHER;
	__u32 length = bpf_ntohs(udp->len);
	if (length <= sizeof(*udp) || length > ip_payload)
		return PARSED_MALFORMED;
	/* RFC 8200, 8.1: an IPv6 UDP checksum is not optional */
	if (packet->family == FAMILY_IPV6 && !udp->check)
		return PARSED_MALFORMED;

	struct ntp_header *ntp = (void *)(udp + 1);
	if ((void *)&ntp->stratum > end)
		return PARSED_MALFORMED;
	packet->source_port = udp->source;
	packet->payload = length - sizeof(*udp);
	if (length != ip_payload)
		packet->plain = false;
	packet->mode = ntp->li_vn_mode & 7;
	packet->version = ntp->li_vn_mode >> 3 & 7;
	if (packet->payload >= sizeof(*ntp) && (void *)(ntp + 1) <= end) {
		packet->whole = true;
		packet->ntp = *ntp;
	}
	return PARSED_NTP;
}

static __always_inline enum parsed parse_ipv4(struct packet *packet, void *at, void *end)
{
	struct iphdr *ipv4 = at;

	if ((void *)(ipv4 + 1) > end || ipv4->protocol != IPPROTO_UDP)
		return PARSED_OTHER;
	__u32 header = ipv4->ihl * 4;
	__u32 total = bpf_ntohs(ipv4->tot_len);
	if (ipv4->version != 4 || header < sizeof(*ipv4) || total < header)
		return PARSED_OTHER;
	packet->family = FAMILY_IPV4;
	packet->ttl = ipv4->ttl;
	map_ipv4(&packet->source, ipv4->saddr);
	map_ipv4(&packet->destination, ipv4->daddr);
	packet->plain = header == sizeof(*ipv4);
	packet->key = NTPGUARD_KEY_IPV4_TAG |
		      (__u64)constants.ipv4_prefix << KEY_IPV4_LENGTH_SHIFT |
		      (bpf_ntohl(ipv4->saddr) & constants.ipv4_mask);
	if (ipv4->frag_off & bpf_htons(IPV4_MORE_OR_OFFSET))
		return PARSED_ODD;
	return parse_udp(packet, at + header, end, total - header);
}

static __always_inline enum parsed parse_ipv6(struct packet *packet, void *at, void *end)
{
	struct ipv6hdr *ipv6 = at;

	if ((void *)(ipv6 + 1) > end || ipv6->version != 6)
		return PARSED_OTHER;
	packet->family = FAMILY_IPV6;
	packet->ttl = ipv6->hop_limit;
	__builtin_memcpy(&packet->source, &ipv6->saddr, sizeof(packet->source));
	__builtin_memcpy(&packet->destination, &ipv6->daddr, sizeof(packet->destination));
	packet->key = ((__u64)bpf_ntohl(ipv6->saddr.s6_addr32[0]) << 32 |
		       bpf_ntohl(ipv6->saddr.s6_addr32[1])) &
		      constants.ipv6_mask;
	if (!packet->key)
		packet->key = NTPGUARD_KEY_ZERO_TAG;

	__u32 left = bpf_ntohs(ipv6->payload_len);
	__u8 next = ipv6->nexthdr;
	packet->plain = true;
	at = ipv6 + 1;
	/* RFC 2675: an option has the length; Linux asks for none and takes the frame's */
	if (!left && next == IPPROTO_HOPOPTS)
		return PARSED_ODD;
	for (int i = 0; i < EXTENSION_HEADERS && next != IPPROTO_UDP; i++) {
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT)
			return PARSED_OTHER;
		struct extension_header *extension = at;
		if ((void *)(extension + 1) > end)
			return PARSED_ODD;
		if (next == IPPROTO_FRAGMENT)
			return extension->next == IPPROTO_TCP || extension->next == IPPROTO_ICMPV6 ?
				       PARSED_OTHER :
				       PARSED_ODD;
		__u32 length = (extension->length + 1) * 8;
		if (length > left)
			return PARSED_OTHER;
		packet->plain = false;
		left -= length;
		next = extension->next;
		at += length;
	}
	if (next != IPPROTO_UDP)
		return PARSED_ODD;
	enum parsed parsed = parse_udp(packet, at, end, left);
	/* RFC 4291, 2.7: never a source address */
	if (parsed == PARSED_NTP && packet->source.bytes[0] == 0xff)
		return PARSED_MALFORMED;
	return parsed;
}

static __always_inline bool is_for_this_interface(const struct ethhdr *ethernet)
{
	const __u16 *destination = (const void *)ethernet->h_dest;
	const volatile __u16 *mac = (const volatile void *)constants.mac;

	return destination[0] == mac[0] && destination[1] == mac[1] && destination[2] == mac[2];
}

static __always_inline enum parsed parse(struct xdp_md *ctx, struct packet *packet)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	void *at = ethernet + 1;

	if (at > end || !is_for_this_interface(ethernet))
		return PARSED_OTHER;
	packet->group = ethernet->h_source[0] & 1;
	packet->frame = end - (void *)ethernet;
	__be16 protocol = ethernet->h_proto;
	for (int i = 0; i < VLAN_TAGS; i++) {
		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			break;
		struct vlan_tag *tag = at;
		at = tag + 1;
		if (at > end)
			return PARSED_OTHER;
		protocol = tag->encapsulated;
		packet->tags++;
	}
	if (protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(packet, at, end);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(packet, at, end);
	return PARSED_OTHER;
}

#endif
