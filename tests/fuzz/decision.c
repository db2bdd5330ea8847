// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* libFuzzer's target: the packet path, compiled for user space as it is, judges a sequence of frames.
 * Maps are real, of plain memory (maps.h). What must hold after each frame is said by code of its own
 * (frames.h, passes.h). An input is a byte that chooses the policy, then steps: see
 * LLVMFuzzerTestOneInput.
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
	PREFIXES_MOST = 32,
	STEPS_MOST = 512,
	TIMES_MOST = 64,
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

#include "maps.h"
#include "frames.h"

/* ---- what the control plane does ---- */

static struct variant *running_variant;

static struct shared *the_shared(void)
{
	return (void *)map_of(&shared)->values;
}

static unsigned running_copy(void)
{
	return the_shared()->root.word >> ROOT_POLICY_SHIFT & 1;
}

static struct policy *running_policy(void)
{
	return (struct policy *)map_of(&policy)->values + running_copy();
}

#include "passes.h"

static void set_addresses(struct variant *variant, unsigned copy)
{
	for (int i = 0; i < 2; i++) {
		__u32 *known = bpf_map_lookup_elem(&addresses, variant->addresses[i].address);
		__u32 flags = (known ? *known : 0) & ~(ADDRESS_DESTINATION << copy);
		flags |= variant->addresses[i].flags & ADDRESS_LOCAL;
		if (variant->addresses[i].flags & ADDRESS_DESTINATION)
			flags |= ADDRESS_DESTINATION << copy;
		bpf_map_update_elem(&addresses, variant->addresses[i].address, &flags, BPF_ANY);
	}
}

/* The idle copies are filled, then one word commits. */
static void apply(struct variant *variant)
{
	__u64 *root = &the_shared()->root.word;
	unsigned copy = !running_copy();
	__u64 generation = (*root >> ROOT_GENERATION_SHIFT) + 1;

	running_variant = copies[copy] = variant;
	memcpy((struct policy *)map_of(&policy)->values + copy, variant->policy,
	       sizeof(struct policy));
	set_addresses(variant, copy);
	*root = (*root & 3ULL << ROOT_ENTRIES_SHIFT) | variant->mode | copy << ROOT_POLICY_SHIFT |
		copy << ROOT_PREFIXES_SHIFT |
		(generation & ((1 << ROOT_GENERATION_BITS) - 1)) << ROOT_GENERATION_SHIFT;
	forget_passes();
}

static void begin(struct variant *variant)
{
	clear_maps();
	copies[0] = copies[1] = variant;
	memcpy((void *)&constants, variant->constants, sizeof(constants));
	inputs.clock_ns = 1000000000000;
	inputs.chance = 0xffffffff;
	apply(variant);
}

/* A live entry, over others or not, for a time or for ever. */
static void enter(unsigned number)
{
	static unsigned char ipv4[4][4] = {
		{203, 0, 113, 7}, {198, 18, 5, 7}, {198, 18, 6, 7}, {198, 18, 7, 200}};
	static unsigned char ipv6[4][16] = {{0x20, 1, 0xd, 0xb8, 0, 0x12, [15] = 7},
					    {0x20, 1, 0xd, 0xb8, 0, 5, [15] = 1},
					    {0x20, 1, 0xd, 0xb8, 0, 6, [15] = 1},
					    {0x20, 1, 0xd, 0xb8, 0, 7, [15] = 1}};
	unsigned which = number >> 2 & 3, lengths = number >> 4 & 3, shorter = number >> 13 & 3;
	unsigned family = number & 1, unit = family == FAMILY_IPV4 ? 8 : 32;
	struct entry entry = {
		.action = number & 2 ? ACTION_BLOCK : ACTION_EXEMPT,
		.fallback = shorter && shorter <= lengths ? unit * shorter : ENTRY_NO_FALLBACK,
		.expires_ns =
			number >> 8 & 1 ? 0 : inputs.clock_ns + (number >> 9 & 7) * 1000000000ULL,
	};
	struct prefix_ipv4 key4 = {.length = unit * (lengths + 1)};
	struct prefix_ipv6 key6 = {.length = unit * (lengths + 1)};

	memcpy(key4.address, ipv4[which], sizeof(key4.address));
	memcpy(key6.address, ipv6[which], sizeof(key6.address));
	if (family == FAMILY_IPV4)
		bpf_map_update_elem(&entries_ipv4, &key4, &entry, BPF_ANY);
	else
		bpf_map_update_elem(&entries_ipv6, &key6, &entry, BPF_ANY);
	the_shared()->root.word |= 1ULL << (ROOT_ENTRIES_SHIFT + family);
}

/* ---- a frame, and what must hold ---- */

/* What a plain request must come to, whatever came before. */
static void require_action(unsigned char *frame, int code)
{
	unsigned char *source = frame + 14 + 12;
	bool all = running_variant == &variants[1];

	switch (entries_over(source)) {
	case ENTRIES_EXEMPT:
		REQUIRE(code == XDP_PASS);
		return;
	case ENTRIES_BLOCK:
		REQUIRE(code == XDP_DROP);
		return;
	case ENTRIES_NONE:
		if (!all || source[0] != 198 || source[1] != 18)
			return;
		if (source[2] == 5 || source[2] == 8) /* exempt, canary */
			REQUIRE(code == XDP_PASS);
		if (source[2] == 6)
			REQUIRE(code == XDP_DROP);
		return;
	default:
		return;
	}
}

static void judge_frame(unsigned char *frame, size_t size)
{
	static unsigned char was[FRAME_MOST];
	unsigned char *at = (void *)(long)FRAME_ADDRESS;

	/* nothing beyond its end may be read */
	ASAN_POISON_MEMORY_REGION(at, FRAME_MOST);
	ASAN_UNPOISON_MEMORY_REGION(at, size);
	memcpy(at, frame, size);
	memcpy(was, frame, size);
	forget_counted();
	struct xdp_md ctx = {.data = FRAME_ADDRESS, .data_end = FRAME_ADDRESS + size};
	int code = ntpguard(&ctx);
	bool judged = require_counted(code, size);

	REQUIRE(code == XDP_PASS || code == XDP_DROP || code == XDP_TX);
	if (is_for_another(was, size))
		REQUIRE(!judged);
	if (code == XDP_PASS)
		REQUIRE(!memcmp(was, at, size));
	if (code == XDP_TX)
		require_kod(was, at, size);
	if (running_variant->mode == MODE_OBSERVE)
		REQUIRE(code == XDP_PASS);
	else if (!(running_policy()->flags & POLICY_DESTINATIONS) && is_impossible(was, size) &&
		 entries_over(was + 14 + 12) == ENTRIES_NONE)
		REQUIRE(code == XDP_DROP);
	if (running_variant->mode == MODE_ENFORCE && judged && is_plain_request(was, size))
		require_action(was, code);
	if (judged)
		charge(was);
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
	(void)count;
	(void)arguments;
	void *at = mmap((void *)(long)FRAME_ADDRESS, FRAME_MOST, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	return at == (void *)(long)FRAME_ADDRESS ? 0 : (perror("mmap"), exit(1), 1);
}

/* Steps, each a kind and a number of 16 bits: 0: so many milliseconds pass; 1: chance, in its upper half;
 * 2: a live entry; 3: a policy is applied; 4: the last frame again, so many times; 5 and up: a frame of so
 * many bytes, which follow. Past the end of the input, the rest of the frame is what is left.
 */
int LLVMFuzzerTestOneInput(uint8_t *data, size_t size)
{
	enum { VARIANTS = sizeof(variants) / sizeof(*variants) };

	unsigned char frame[FRAME_MOST];
	size_t length = 0;

	if (!size)
		return 0;
	begin(&variants[data[0] % VARIANTS]);
	data++, size--;
	for (int step = 0; step < STEPS_MOST && size > 2; step++) {
		unsigned kind = data[0], number = data[1] | data[2] << 8;
		data += 3, size -= 3;
		if (kind == 0) {
			inputs.clock_ns += number * 1000000ULL;
		} else if (kind == 1) {
			inputs.chance = number << 16 | number;
		} else if (kind == 2) {
			enter(number);
		} else if (kind == 3) {
			apply(&variants[number % VARIANTS]);
		} else if (kind == 4) {
			for (unsigned i = 0; i < number % TIMES_MOST; i++)
				judge_frame(frame, length);
		} else {
			length = number % FRAME_MOST;
			if (length > size)
				length = size;
			/* addressed to us, more often than chance would have it */
			memcpy(frame, data, length);
			if (kind & 1 && length >= 6)
				memcpy(frame, (void *)constants.mac, 6);
			judge_frame(frame, length);
			data += length, size -= length;
		}
	}
	return 0;
}
