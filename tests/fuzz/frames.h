/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What must hold of a frame and its answer, by code that has nothing of the packet path's. */
#ifndef FUZZ_FRAMES_H
#define FUZZ_FRAMES_H

#define REQUIRE(what)                                                                              \
	do {                                                                                       \
		if (!(what)) {                                                                     \
			fprintf(stderr, "broken: %s\n", #what);                                    \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

static unsigned be16(unsigned char *at)
{
	return at[0] << 8 | at[1];
}

/* RFC 1071: 0 over what has a right checksum in it */
static unsigned ones(unsigned char *at, size_t count, unsigned sum)
{
	for (size_t i = 0; i + 1 < count; i += 2)
		sum += be16(at + i);
	if (count % 2)
		sum += at[count - 1] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* A Kiss-o'-Death of code RATE that answers the request (protocol.md, section 2), at the same size. */
static void require_kod(unsigned char *was, unsigned char *now, size_t size)
{
	size_t at = 12;

	REQUIRE(!memcmp(now, was + 6, 6) && !memcmp(now + 6, was, 6));
	REQUIRE(!(was[6] & 1));
	while (be16(was + at) == 0x8100 || be16(was + at) == 0x88a8)
		at += 4;
	REQUIRE(!memcmp(was + 12, now + 12, at - 12 + 2));
	bool ipv4 = be16(was + at) == 0x0800;
	at += 2;
	size_t addresses_at = at + (ipv4 ? 12 : 8), address = ipv4 ? 4 : 16;
	REQUIRE(!memcmp(now + addresses_at, was + addresses_at + address, address));
	REQUIRE(!memcmp(now + addresses_at + address, was + addresses_at, address));
	if (ipv4) {
		REQUIRE(was[at] == 0x45 && now[at] == 0x45 && now[at + 1] == 0 &&
			now[at + 8] == 64);
		REQUIRE(ones(now + at, 20, 0) == 0xffff);
		REQUIRE(!memcmp(was + at + 2, now + at + 2, 2));
	} else {
		REQUIRE(now[at] == 0x60 && !now[at + 1] && !now[at + 2] && !now[at + 3]);
		REQUIRE(was[at + 6] == 17 && now[at + 6] == 17 && now[at + 7] == 64);
	}
	size_t udp = at + (ipv4 ? 20 : 40), ntp = udp + 8;
	REQUIRE(ntp + 48 <= size);
	REQUIRE(be16(now + udp) == be16(was + udp + 2) && be16(now + udp + 2) == be16(was + udp));
	REQUIRE(be16(now + udp + 4) == 56 && be16(was + udp + 4) == 56);
	unsigned source_port = be16(was + udp);
	REQUIRE(source_port == 123 || source_port >= 1024);
	if (be16(now + udp + 6) || !ipv4) {
		unsigned pseudo = ones(now + addresses_at, 2 * address, 17 + 56);
		REQUIRE(be16(now + udp + 6) && ones(now + udp, 56, pseudo) == 0xffff);
	} else {
		REQUIRE(!be16(was + udp + 6));
	}
	unsigned char *request = was + ntp, *kod = now + ntp;
	unsigned version = request[0] >> 3 & 7;
	REQUIRE((request[0] & 7) == 3 && version >= 1 && version <= 4);
	REQUIRE(kod[0] == (3 << 6 | version << 3 | 4) && !kod[1]);
	REQUIRE((signed char)kod[2] >= 6 && (signed char)kod[2] <= 10 && kod[3] == 0xe9);
	for (int i = 4; i < 12; i++)
		REQUIRE(!kod[i]);
	REQUIRE(!memcmp(kod + 12, "RATE", 4));
	for (int i = 16; i < 24; i++)
		REQUIRE(!kod[i]);
	static unsigned char none[8];
	REQUIRE(memcmp(request + 40, none, 8));
	for (int i = 24; i < 48; i += 8)
		REQUIRE(!memcmp(kod + i, request + 40, 8));
}

/* Whether it is plainly a request over IPv4 to port 123, of a mode that is limited. */
static bool is_plain_request(unsigned char *frame, size_t size)
{
	if (size < 90 || memcmp(frame, (void *)constants.mac, 6) || be16(frame + 12) != 0x0800)
		return false;
	unsigned char *ip = frame + 14, *udp = ip + 20;
	unsigned total = be16(ip + 2), mode = udp[8] & 7;
	return ip[0] == 0x45 && ip[9] == 17 && !(be16(ip + 6) & 0x3fff) && total >= 76 &&
	       be16(udp + 2) == 123 && be16(udp + 4) >= 56 && be16(udp + 4) <= total - 20 &&
	       (mode == 0 || mode == 1 || mode == 3);
}

/* Whether it is too short for anything, for another station, or no IP. */
static bool is_for_another(unsigned char *frame, size_t size)
{
	if (size < 14 + 20 + 8 || memcmp(frame, (void *)constants.mac, 6))
		return size < 14 + 20 || memcmp(frame, (void *)constants.mac, 6);
	unsigned kind = be16(frame + 12);
	return kind != 0x0800 && kind != 0x86dd && kind != 0x8100 && kind != 0x88a8;
}

/* Whether plain IPv4 to port 123 has a UDP length that the datagram has no room for. */
static bool is_impossible(unsigned char *frame, size_t size)
{
	if (size < 43 || memcmp(frame, (void *)constants.mac, 6) || be16(frame + 12) != 0x0800)
		return false;
	unsigned char *ip = frame + 14, *udp = ip + 20;
	unsigned total = be16(ip + 2);
	return ip[0] == 0x45 && ip[9] == 17 && !(be16(ip + 6) & 0x3fff) && total >= 20 &&
	       be16(udp + 2) == 123 && be16(udp + 4) > total - 20;
}

#endif
