/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The running policy: one root word names the copies that belong together, so that no packet sees a
 * mixture. Live entries come first, then the class by longest prefix, then signatures.
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

/* Live entries are no part of a policy: each comes and goes by itself. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, NTPGUARD_ENTRIES);
	__type(key, struct prefix_ipv4);
	__type(value, struct entry);
} entries_ipv4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, NTPGUARD_ENTRIES);
	__type(key, struct prefix_ipv6);
	__type(value, struct entry);
} entries_ipv6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NTPGUARD_SIGNATURES);
	__type(key, __u32);
	__type(value, struct signature_counters);
} signature_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, __u32);
} addresses SEC(".maps");

/* Whether a time that may be set has come; 0 is never. */
static __always_inline bool is_over(__u64 until_ns, __u64 now_ns)
{
	return until_ns && now_ns >= until_ns;
}

struct running {
	struct shared *shared;
	struct local *local;
	const struct policy *policy;
	__u32 mode;	/* of the root word: mode_at says which one holds */
	__u32 copy;	/* of struct policy */
	__u32 prefixes; /* which copy */
	__u32 entries;	/* bit by family: there are some */
	__u32 generation;
};

static __always_inline bool read_running(struct running *running)
{
	__u32 zero = 0;

	running->shared = bpf_map_lookup_elem(&shared, &zero);
	running->local = bpf_map_lookup_elem(&local, &zero);
	if (!running->shared || !running->local)
		return false;
	__u64 root = *(volatile __u64 *)&running->shared->root.word;
	running->copy = root >> ROOT_POLICY_SHIFT & 1;
	running->policy = bpf_map_lookup_elem(&policy, &running->copy);
	running->mode = root & ((1 << ROOT_MODE_BITS) - 1);
	running->prefixes = root >> ROOT_PREFIXES_SHIFT & 1;
	running->entries = root >> ROOT_ENTRIES_SHIFT & 3;
	running->generation = root >> ROOT_GENERATION_SHIFT & ((1 << ROOT_GENERATION_BITS) - 1);
	return running->policy;
}

static __always_inline __u32 mode_at(const struct running *running, __u64 now_ns)
{
	const struct policy *policy = running->policy;

	return is_over(policy->mode_until_ns, now_ns) ? policy->mode_after : running->mode;
}

static __always_inline const struct class_rule *rule_at(const struct policy *policy, __u32 class,
							__u64 now_ns)
{
	class &= NTPGUARD_CLASSES - 1;
	const struct class_rule *rule = &policy->classes[class];

	return is_over(rule->until_ns, now_ns) ? &policy->classes_after[class] : rule;
}

/* ACTION_LIMIT: no live entry holds. One that has expired gives way to what it lay over. */
SEPARATE int action_by_entry(const struct address *source, __u32 family, __u64 now_ns)
{
	struct prefix_ipv4 ipv4 = {.length = 32};
	struct prefix_ipv6 ipv6 = {.length = 128};

	if (!source)
		return ACTION_LIMIT;
	__builtin_memcpy(ipv4.address, &source->words[3], sizeof(ipv4.address));
	__builtin_memcpy(ipv6.address, source, sizeof(ipv6.address));
	for (int i = 0; i < NTPGUARD_ENTRY_DEPTH; i++) {
		const struct entry *entry = family == FAMILY_IPV4 ?
						    bpf_map_lookup_elem(&entries_ipv4, &ipv4) :
						    bpf_map_lookup_elem(&entries_ipv6, &ipv6);
		if (!entry)
			break;
		if (!is_over(entry->expires_ns, now_ns))
			return entry->action;
		if (entry->fallback == ENTRY_NO_FALLBACK)
			break;
		ipv4.length = entry->fallback;
		ipv6.length = entry->fallback;
	}
	return ACTION_LIMIT;
}

/* The packed value of the longest prefix in a copy of the prefixes, or 0: the default class. */
SEPARATE int longest_prefix(const struct address *source, __u32 family, __u32 copy)
{
	struct prefix_ipv4 ipv4 = {.length = 32};
	struct prefix_ipv6 ipv6 = {.length = 128};
	__u32 *value = NULL;
	void *trie;

	if (!source)
		return 0;
	if (family == FAMILY_IPV4) {
		__builtin_memcpy(ipv4.address, &source->words[3], sizeof(ipv4.address));
		trie = bpf_map_lookup_elem(&prefixes_ipv4, &copy);
		if (trie)
			value = bpf_map_lookup_elem(trie, &ipv4);
	} else {
		__builtin_memcpy(ipv6.address, source, sizeof(ipv6.address));
		trie = bpf_map_lookup_elem(&prefixes_ipv6, &copy);
		if (trie)
			value = bpf_map_lookup_elem(trie, &ipv6);
	}
	return value ? *value : 0;
}

static __always_inline __u32 value_by_prefix(const struct running *running,
					     const struct packet *packet)
{
	__u32 some = packet->family == FAMILY_IPV4 ? POLICY_PREFIXES_IPV4 : POLICY_PREFIXES_IPV6;

	if (!(running->policy->flags & some))
		return 0;
	return longest_prefix(&packet->source, packet->family, running->prefixes);
}

static __always_inline bool is_upstream(const struct running *running, const struct packet *packet)
{
	return value_by_prefix(running, packet) >> PREFIX_UPSTREAM_SHIFT & 1;
}

/* Prefixes tell hosts within one source apart: several classes charge one tat. */
static __always_inline bool is_shared(const struct running *running, const struct packet *packet)
{
	__u32 longer = packet->family == FAMILY_IPV4 ? POLICY_LONG_IPV4 : POLICY_LONG_IPV6;

	return running->policy->flags & longer;
}

/* The class that a source's slot remembers holds while no prefix has changed, unless prefixes tell hosts
 * within one source apart.
 */
static __always_inline bool is_class_cached(const struct running *running,
					    const struct packet *packet, __u64 aux)
{
	return AUX_GET(aux, GENERATION) == running->generation && !is_shared(running, packet);
}

static __always_inline __u32 address_flags(const struct address *address)
{
	struct address key = *address; /* before Linux 6.2, a key must be on the stack */
	__u32 *flags = bpf_map_lookup_elem(&addresses, &key);

	return flags ? *flags : 0;
}

static __always_inline bool has_fraction(__u8 wanted, __u32 fraction)
{
	switch (wanted) {
	case FRACTION_MICROSECONDS: /* truncated: just below the next one */
		return (__u32)(fraction * 1000000ULL) >= (999ULL << 32) / 1000;
	case FRACTION_NANOSECONDS:
		return fraction < 1000000000;
	default:
		return true;
	}
}

SEPARATE int has_shape(const struct signature *one, const struct packet *packet)
{
	if (!one || !packet)
		return false;
	const __u64 *value = (const __u64 *)one->value;
	const __u64 *mask = (const __u64 *)one->mask;
	__u64 difference = (packet->words[0] & mask[0]) ^ value[0];

	if (difference) /* most end here */
		return false;
#pragma unroll
	for (int word = 1; word < NTPGUARD_HEADER_BYTES / 8; word++)
		difference |= (packet->words[word] & mask[word]) ^ value[word];
	if (difference ||
	    (one->flags & SIGNATURE_SOURCE_PORT && one->source_port != packet->source_port))
		return false;
	return has_fraction(one->fraction, bpf_ntohl(packet->ntp.transmit_timestamp[1]));
}

/* Counts a match; whether it blocks. */
SEPARATE int blocks(const struct signature *one, __u32 index)
{
	struct signature_counters *count = bpf_map_lookup_elem(&signature_counters, &index);

	if (!one || !count)
		return false;
	count->matched++;
	if (one->flags & SIGNATURE_OBSERVE)
		return false;
	count->blocked++;
	return true;
}

/* Whether one of the signatures from `first` to before `end` blocks the packet; counts each match. */
SEPARATE int signature_blocks(const struct policy *policy, const struct packet *packet, __u32 first,
			      __u32 end)
{
	if (!policy || !packet)
		return false;
	for (__u32 i = 0; i < NTPGUARD_SIGNATURES && i < end; i++)
		if (i >= first && has_shape(&policy->signature[i], packet) &&
		    blocks(&policy->signature[i], i))
			return true;
	return false;
}

/* Of a whole packet. */
static __always_inline bool is_blocked_by_signature(const struct policy *policy,
						    const struct packet *packet, __u32 first,
						    __u32 end)
{
	return first < end && signature_blocks(policy, packet, first, end);
}

#endif
