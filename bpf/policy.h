/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The running policy: one root word names the copies that belong together, so that no packet sees a
 * mixture. Room for: live entries (before the prefixes) and signatures (after them).
 */
#ifndef NTPGUARD_POLICY_H
#define NTPGUARD_POLICY_H

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct shared);
} shared SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NTPGUARD_COPIES);
	__type(key, __u32);
	__type(value, struct policy);
} policy SEC(".maps");

/* Read by user space only; here so that it lives and is typed with the rest. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NTPGUARD_COPIES);
	__type(key, __u32);
	__type(value, struct document);
} document SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct table);
} table SEC(".maps");

/* A copy of the prefixes is a whole trie, made new by user space for each policy. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, NTPGUARD_COPIES);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_LPM_TRIE);
			__uint(map_flags, BPF_F_NO_PREALLOC);
			__uint(max_entries, 1);
			__uint(key_size, sizeof(struct prefix_ipv4));
			__uint(value_size, sizeof(__u32));
		});
} prefixes_ipv4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, NTPGUARD_COPIES);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_LPM_TRIE);
			__uint(map_flags, BPF_F_NO_PREALLOC);
			__uint(max_entries, 1);
			__uint(key_size, sizeof(struct prefix_ipv6));
			__uint(value_size, sizeof(__u32));
		});
} prefixes_ipv6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, __u32);
} addresses SEC(".maps");

struct running {
	struct shared *shared;
	const struct policy *policy;
	__u32 mode;
	__u32 prefixes; /* which copy */
	__u32 generation;
};

static __always_inline bool read_running(struct running *running)
{
	__u32 zero = 0;

	running->shared = bpf_map_lookup_elem(&shared, &zero);
	if (!running->shared)
		return false;
	__u64 root = *(volatile __u64 *)&running->shared->root;
	__u32 copy = root >> ROOT_POLICY_SHIFT & 1;
	running->policy = bpf_map_lookup_elem(&policy, &copy);
	running->mode = root & ((1 << ROOT_MODE_BITS) - 1);
	running->prefixes = root >> ROOT_PREFIXES_SHIFT & 1;
	running->generation = root >> ROOT_GENERATION_SHIFT & ((1 << ROOT_GENERATION_BITS) - 1);
	return running->policy;
}

static __always_inline __u32 class_by_prefix(const struct running *running,
					     const struct packet *packet)
{
	__u32 copy = running->prefixes;
	__u32 *value = NULL;

	if (packet->family == FAMILY_IPV4) {
		if (!(running->policy->flags & POLICY_PREFIXES_IPV4))
			return 0;
		struct prefix_ipv4 prefix = {.length = 32};
		__builtin_memcpy(prefix.address, &packet->source.words[3], sizeof(prefix.address));
		void *trie = bpf_map_lookup_elem(&prefixes_ipv4, &copy);
		if (trie)
			value = bpf_map_lookup_elem(trie, &prefix);
	} else {
		if (!(running->policy->flags & POLICY_PREFIXES_IPV6))
			return 0;
		struct prefix_ipv6 prefix = {.length = 128};
		__builtin_memcpy(prefix.address, &packet->source, sizeof(prefix.address));
		void *trie = bpf_map_lookup_elem(&prefixes_ipv6, &copy);
		if (trie)
			value = bpf_map_lookup_elem(trie, &prefix);
	}
	return value ? *value & (NTPGUARD_CLASSES - 1) : 0;
}

/* The class that a source's slot remembers holds while no prefix has changed, unless prefixes tell hosts
 * within one source apart.
 */
static __always_inline bool is_class_cached(const struct running *running,
					    const struct packet *packet, __u64 aux)
{
	__u32 longer = packet->family == FAMILY_IPV4 ? POLICY_LONG_IPV4 : POLICY_LONG_IPV6;
	__u32 generation = aux >> AUX_GENERATION_SHIFT & ((1 << AUX_GENERATION_BITS) - 1);

	return generation == running->generation && !(running->policy->flags & longer);
}

static __always_inline __u32 address_flags(const struct address *address)
{
	__u32 *flags = bpf_map_lookup_elem(&addresses, address);

	return flags ? *flags : 0;
}

#endif
