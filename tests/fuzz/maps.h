/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The maps of the packet path, of plain memory: an array, or a few entries that are searched one by one,
 * the oldest of which gives way. The policy's prefixes are those of the variant that a copy was filled
 * from.
 */
#ifndef FUZZ_MAPS_H
#define FUZZ_MAPS_H

enum { ENTRIES_MOST = 64 };

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
	return is_array(map) ? map->most : ENTRIES_MOST;
}

static struct map *map_of(void *name)
{
	for (size_t i = 0; i < sizeof(maps) / sizeof(*maps); i++)
		if (maps[i].name == name)
			return &maps[i];
	abort();
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
static void *find_prefix(struct variant *variant, int version, unsigned char *key)
{
	struct prefix *best = NULL;

	for (int i = 0; i < variant->prefix_count; i++) {
		struct prefix *one = &variant->prefixes[i];
		if (one->version == version && one->length <= *(__u32 *)key &&
		    begins_with(key + 4, one->address, one->length) &&
		    (!best || one->length > best->length))
			best = one;
	}
	return best ? &best->value : NULL;
}

/* the index of a key, or of the longest prefix of a key; or -1 */
static long find(struct map *map, unsigned char *key)
{
	long best = -1;

	for (size_t i = 0; i < map->count; i++) {
		unsigned char *one = map->keys + i * map->key;
		unsigned length = *(__u32 *)one;
		if (map->type != BPF_MAP_TYPE_LPM_TRIE) {
			if (!memcmp(one, key, map->key))
				return i;
		} else if (length <= *(__u32 *)key && begins_with(key + 4, one + 4, length) &&
			   (best < 0 || length > *(__u32 *)(map->keys + best * map->key))) {
			best = i;
		}
	}
	return best;
}

static struct variant *copies[NTPGUARD_COPIES]; /* what a copy was filled from */
static char tries[FAMILIES][NTPGUARD_COPIES];	/* what a lookup in prefixes_ipv4, _ipv6 gives */

void *bpf_map_lookup_elem(void *name, void *key)
{
	if (name == &prefixes_ipv4 || name == &prefixes_ipv6) {
		char *trie = tries[name == &prefixes_ipv6];
		return *(__u32 *)key < NTPGUARD_COPIES ? trie + *(__u32 *)key : NULL;
	}
	for (int copy = 0; copy < NTPGUARD_COPIES; copy++) {
		if (name == &tries[FAMILY_IPV4][copy])
			return find_prefix(copies[copy], 4, key);
		if (name == &tries[FAMILY_IPV6][copy])
			return find_prefix(copies[copy], 6, key);
	}

	struct map *map = map_of(name);
	long at = is_array(map) ? *(__u32 *)key : find(map, key);
	if (at < 0 || (is_array(map) && at >= (long)map->most))
		return NULL;
	return map->values + at * map->value;
}

long bpf_map_update_elem(void *name, void *key, void *value, __u64 flags)
{
	struct map *map = map_of(name);
	long at = find(map, key);

	if (at >= 0 && memcmp(map->keys + at * map->key, key, map->key))
		at = -1; /* a shorter prefix */
	if (at >= 0 && flags == BPF_NOEXIST)
		return -17; /* EEXIST */
	if (at < 0) {
		at = map->count < ENTRIES_MOST ? map->count++ : map->next++ % ENTRIES_MOST;
		memcpy(map->keys + at * map->key, key, map->key);
	}
	memcpy(map->values + at * map->value, value, map->value);
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

#endif
