// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* libFuzzer's target: the packet path, compiled for user space as it is, judges a sequence of frames.
 * Maps are real, of plain memory. What must hold after each frame is said by code of its own. An input is
 * a byte that chooses the policy, then steps: see LLVMFuzzerTestOneInput.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <sanitizer/asan_interface.h>
#include <bpf/bpf_endian.h>

/* the loader writes constants: here they are a variable */
#define const
#include "../../bpf/ntpguard.bpf.c"
#undef const

enum {
	FRAME_ADDRESS = 0x10000000, /* struct xdp_md has 32 bits for it */
	FRAME_MOST = 2048,
	HASH_MOST = 64,
	PREFIXES_MOST = 32,
	STEPS_MOST = 512,
};

struct prefix {
	int version;
	unsigned length;
	unsigned char address[16];
	unsigned value;
};

struct variant {
	int mode;
	unsigned char constants[sizeof(struct constants)];
	unsigned char policy[sizeof(struct policy)];
	int prefix_count;
	struct prefix prefixes[PREFIXES_MOST];
	struct {
		unsigned char address[16];
		unsigned flags;
	} addresses[2];
};

#include "policies.h"

static struct variant *running_variant;

/* ---- maps: an array, or a few entries that are searched one by one; the oldest gives way ---- */

struct map {
	void *name;
	size_t type, key, value, most;
	unsigned char *values;
	unsigned char *keys;
	size_t count, next;
};

#define MAP(map)                                                                                   \
	{                                                                                          \
		&(map), sizeof(*(map).type) / sizeof(int), sizeof(*(map).key),                     \
			sizeof(*(map).value), sizeof(*(map).max_entries) / sizeof(int), NULL,      \
			NULL, 0, 0                                                                 \
	}

static struct map maps[] = {
	MAP(shared),
	MAP(policy),
	MAP(entries_ipv4),
	MAP(entries_ipv6),
	MAP(signature_counters),
	MAP(addresses),
	MAP(counters),
	MAP(offenders),
	MAP(local),
	MAP(leak),
	MAP(sources),
	MAP(table_counters),
	MAP(trials),
	MAP(kod_counters),
};

static bool is_array(struct map *map)
{
	return map->type == BPF_MAP_TYPE_ARRAY || map->type == BPF_MAP_TYPE_PERCPU_ARRAY;
}

static size_t room(struct map *map)
{
	return is_array(map) ? map->most : HASH_MOST;
}

static struct map *map_of(void *name)
{
	for (size_t i = 0; i < sizeof(maps) / sizeof(*maps); i++)
		if (maps[i].name == name)
			return &maps[i];
	return NULL;
}

static void clear_maps(void)
{
	for (size_t i = 0; i < sizeof(maps) / sizeof(*maps); i++) {
		struct map *map = &maps[i];
		if (!map->values) {
			map->values = calloc(room(map), map->value);
			map->keys = calloc(room(map), map->key);
		}
		memset(map->values, 0, room(map) * map->value);
		map->count = map->next = 0;
	}
}

static bool begins_with(unsigned char *address, unsigned char *prefix, unsigned bits)
{
	unsigned whole = bits / 8, rest = bits % 8;

	if (memcmp(address, prefix, whole))
		return false;
	return !rest || !((address[whole] ^ prefix[whole]) >> (8 - rest));
}

/* the longest of the variant's prefixes; its value lives as long as the variant */
static void *find_prefix(int version, unsigned char *key)
{
	struct prefix *best = NULL;

	for (int i = 0; i < running_variant->prefix_count; i++) {
		struct prefix *one = &running_variant->prefixes[i];
		if (one->version == version && begins_with(key + 4, one->address, one->length) &&
		    (!best || one->length > best->length))
			best = one;
	}
	return best ? &best->value : NULL;
}

static char tries[2]; /* what a lookup in prefixes_ipv4 and prefixes_ipv6 gives */

void *bpf_map_lookup_elem(void *name, void *key)
{
	if (name == &prefixes_ipv4)
		return *(__u32 *)key < NTPGUARD_COPIES ? &tries[0] : NULL;
	if (name == &prefixes_ipv6)
		return *(__u32 *)key < NTPGUARD_COPIES ? &tries[1] : NULL;
	if (name == &tries[0] || name == &tries[1])
		return find_prefix(name == &tries[0] ? 4 : 6, (unsigned char *)key);

	struct map *map = map_of(name);
	if (!map)
		abort();
	if (is_array(map)) {
		__u32 index = *(__u32 *)key;
		return index < map->most ? map->values + index * map->value : NULL;
	}
	for (size_t i = 0; i < map->count; i++)
		if (!memcmp(map->keys + i * map->key, key, map->key))
			return map->values + i * map->value;
	return NULL;
}

long bpf_map_update_elem(void *name, void *key, void *value, __u64 flags)
{
	unsigned char *found = bpf_map_lookup_elem(name, key);
	struct map *map = map_of(name);

	if (found && flags == BPF_NOEXIST)
		return -17; /* EEXIST */
	if (!found) {
		size_t at = map->count < HASH_MOST ? map->count++ : map->next++ % HASH_MOST;
		memcpy(map->keys + at * map->key, key, map->key);
		found = map->values + at * map->value;
	}
	memcpy(found, value, map->value);
	return 0;
}

/* never asked: constants.test has TEST_INPUTS */
__u64 bpf_jiffies64(void)
{
	abort();
}
__u64 bpf_ktime_get_coarse_ns(void)
{
	abort();
}
__u64 bpf_ktime_get_ns(void)
{
	abort();
}

static struct policy *copy_of_policy(void)
{
	return (void *)map_of(&policy)->values;
}

static void run_variant(struct variant *variant)
{
	clear_maps();
	running_variant = variant;
	memcpy((void *)&constants, variant->constants, sizeof(constants));
	memcpy(map_of(&policy)->values, variant->policy, sizeof(struct policy));
	((struct shared *)map_of(&shared)->values)->root.word = variant->mode;
	struct policy *copy = copy_of_policy();
	for (int i = 0; i < variant->prefix_count; i++)
		copy->flags |= variant->prefixes[i].version == 4 ? POLICY_PREFIXES_IPV4 :
								   POLICY_PREFIXES_IPV6;
	for (int i = 0; i < 2; i++)
		bpf_map_update_elem(&addresses, variant->addresses[i].address,
				    &variant->addresses[i].flags, BPF_ANY);
	inputs.clock_ns = 1000000000000;
	inputs.chance = 0xffffffff;
}

/* ---- what must hold ---- */

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

/* Whether it is plainly a request of 198.18.X.0/24 to port 123, of a mode that is limited. */
static bool is_plain_request(unsigned char *frame, size_t size, int third)
{
	if (size < 90 || memcmp(frame, (void *)constants.mac, 6) || be16(frame + 12) != 0x0800)
		return false;
	unsigned char *ip = frame + 14, *udp = ip + 20;
	unsigned total = be16(ip + 2), mode = udp[8] & 7;
	return ip[0] == 0x45 && ip[9] == 17 && !(be16(ip + 6) & 0x3fff) && total >= 76 &&
	       ip[12] == 198 && ip[13] == 18 && ip[14] == third && be16(udp + 2) == 123 &&
	       be16(udp + 4) >= 56 && be16(udp + 4) <= total - 20 &&
	       (mode == 0 || mode == 1 || mode == 3);
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

static uint64_t counted(void)
{
	uint64_t sum = 0;
	struct counters *cells = (void *)map_of(&counters)->values;

	for (int class = 0; class < NTPGUARD_CLASSES; class ++)
		for (int family = 0; family < FAMILIES; family++)
			for (int verdict = 0; verdict < VERDICTS; verdict++)
				for (int reason = 0; reason < REASONS; reason++)
					sum += cells[class].packets[family][verdict][reason];
	return sum;
}

static void judge_frame(unsigned char *frame, size_t size)
{
	static unsigned char was[FRAME_MOST];
	unsigned char *at = (void *)(long)FRAME_ADDRESS;
	uint64_t before = counted();

	/* nothing beyond its end may be read */
	ASAN_POISON_MEMORY_REGION(at, FRAME_MOST);
	ASAN_UNPOISON_MEMORY_REGION(at, size);
	memcpy(at, frame, size);
	memcpy(was, frame, size);
	struct xdp_md ctx = {.data = FRAME_ADDRESS, .data_end = FRAME_ADDRESS + size};
	int code = ntpguard(&ctx);
	uint64_t after = counted();

	REQUIRE(code == XDP_PASS || code == XDP_DROP || code == XDP_TX);
	REQUIRE(after - before <= 1);
	if (code != XDP_PASS)
		REQUIRE(after == before + 1);
	if (code == XDP_PASS)
		REQUIRE(!memcmp(was, at, size));
	if (code == XDP_TX)
		require_kod(was, at, size);
	if (running_variant->mode == MODE_OBSERVE)
		REQUIRE(code == XDP_PASS);
	else if (!(copy_of_policy()->flags & POLICY_DESTINATIONS) && is_impossible(was, size))
		REQUIRE(code == XDP_DROP);
	bool all = running_variant == &variants[1];
	if (all && is_plain_request(was, size, 5))
		REQUIRE(code == XDP_PASS);
	if (all && is_plain_request(was, size, 6))
		REQUIRE(code == XDP_DROP);
	if (all && is_plain_request(was, size, 8))
		REQUIRE(code == XDP_PASS);
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
	(void)count;
	(void)arguments;
	void *at = mmap((void *)(long)FRAME_ADDRESS, FRAME_MOST, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	return at == (void *)(long)FRAME_ADDRESS ? 0 : (perror("mmap"), exit(1), 1);
}

/* Steps: 0 and a number of 16 bits: so many milliseconds pass; 1 and 32 bits: chance; 2 and up: a frame,
 * its length in 16 bits before it. Past the end of the input, the rest of the frame is what is left.
 */
int LLVMFuzzerTestOneInput(uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	run_variant(&variants[data[0] % (sizeof(variants) / sizeof(*variants))]);
	data++, size--;
	for (int step = 0; step < STEPS_MOST && size > 2; step++) {
		unsigned kind = data[0], number = data[1] | data[2] << 8;
		data += 3, size -= 3;
		if (kind == 0) {
			inputs.clock_ns += number * 1000000ULL;
		} else if (kind == 1) {
			inputs.chance = number << 16 | number;
		} else {
			size_t length = number % FRAME_MOST;
			if (length > size)
				length = size;
			/* addressed to us, more often than chance would have it */
			unsigned char frame[FRAME_MOST];
			memcpy(frame, data, length);
			if (kind & 1 && length >= 6)
				memcpy(frame, (void *)constants.mac, 6);
			judge_frame(frame, length);
			data += length, size -= length;
		}
	}
	return 0;
}
