// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The story of one packet: parse, classify, admit, answer, account (design.md, "The datapath"). */
#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "ntpguard.h"

const volatile struct constants constants; /* the loader writes it at the beginning of .rodata */
const volatile struct abi_types abi_types;
struct inputs inputs;

/* A function that the verifier checks by itself, once, and not in every state of its callers. */
#define SEPARATE __attribute__((noinline))

#include "packet.h"
#include "gcra.h"
#include "sources.h"
#include "policy.h"
#include "kod.h"
#include "account.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NTPGUARD_LEAK_SHARDS);
	__type(key, __u32);
	__type(value, __u64);
} leak SEC(".maps");

static __always_inline __u64 clock_ns(void)
{
	return constants.test ? *(volatile __u64 *)&inputs.clock_ns : bpf_ktime_get_coarse_ns();
}

static __always_inline __u32 chance(void)
{
	return constants.test ? *(volatile __u32 *)&inputs.chance : bpf_get_prandom_u32();
}

static __always_inline void decide(struct decision *decision, __u32 verdict, __u32 reason)
{
	decision->verdict = verdict;
	decision->reason = reason;
}

/* A share of excess is answered anyway, so that who is spoofed is never silenced (CVE-2015-7705). Each of
 * the shards has its own budget: one flood empties one.
 */
static __always_inline bool leaks(const struct running *running, const struct class_rule *rule,
				  __u64 hash, __u64 now)
{
	if (chance() > rule->leak)
		return false;
	__u32 shard = hash >> 32 & (NTPGUARD_LEAK_SHARDS - 1);
	__u64 *tat = bpf_map_lookup_elem(&leak, &shard);
	return tat && gcra(tat, 0, &running->policy->leak_shard, now) == GCRA_CONFORMS;
}

/* Sources without a slot share one limit: never unlimited, never silenced. */
static __always_inline void untracked(const struct running *running, const struct class_rule *rule,
				      __u64 hash, __u64 now, struct decision *decision)
{
	if (gcra(&running->shared->newcomers_tat, 0, &running->policy->newcomers, now) ==
	    GCRA_CONFORMS)
		decide(decision, VERDICT_PASS, REASON_UNTRACKED);
	else if (leaks(running, rule, hash, now))
		decide(decision, VERDICT_PASS, REASON_LEAK);
	else
		decide(decision, VERDICT_DROP, REASON_UNTRACKED);
}

/* Leaked, else kissed, else dropped. Returns what the source's aux word becomes. */
static __always_inline __u64 excess(const struct running *running, const struct packet *packet,
				    const struct class_rule *rule, __u64 aux, __u64 hash, __u64 now,
				    __u64 now_ns, struct decision *decision)
{
	__u16 now_kod = kod_clock(now_ns);
	bool due = kod_due(&aux, running->policy, now_kod);

	if (leaks(running, rule, hash, now)) {
		decide(decision, VERDICT_PASS, REASON_LEAK);
	} else if (due && rule->flags & CLASS_KOD && is_kissable(packet) &&
		   gcra(&running->shared->kod_tat, 0, &running->policy->kod_total, now) ==
			   GCRA_CONFORMS) {
		decide(decision, VERDICT_KOD, REASON_LIMIT);
		aux = kod_sent(aux, now_kod);
	} else {
		decide(decision, VERDICT_DROP, REASON_LIMIT);
	}
	return aux;
}

static __always_inline void limit(const struct running *running, const struct packet *packet,
				  struct slot *slot, const struct class_rule *rule, __u64 hash,
				  struct decision *decision)
{
	__u64 now_ns = clock_ns();
	__u64 now = now_ns >> GCRA_UNIT_SHIFT << GCRA_TAT_SHIFT;
	__u64 class = AUX_SET(AUX_SET(0, CLASS, decision->class), GENERATION, running->generation);
	int admitted = GCRA_LOST;
	__u32 way = slot->way;

	if (way < NTPGUARD_WAYS) {
		admitted =
			gcra(&slot->bucket->gcra[bound_way(way)], slot->owner, &rule->limit, now);
	} else if (way == NO_WAY) {
		struct newcomer newcomer = {
			.key = packet->key,
			.owner = slot->owner,
			.aux = class,
			.now = now,
			.interval = rule->limit.emission_interval,
		};
		way = source_insert(slot->bucket, &newcomer);
		admitted = GCRA_CONFORMS;
	}
	if (way >= NTPGUARD_WAYS || admitted == GCRA_LOST) {
		untracked(running, rule, hash, now, decision);
		return;
	}
	way = bound_way(way);

	__u64 seen = load(&slot->bucket->aux[way]);
	__u64 aux = AUX_SET(AUX_SET(seen, CLASS, decision->class), GENERATION, running->generation);
	__u64 once = 1ULL << STAT_REQUESTS_SHIFT;
	if (admitted == GCRA_CONFORMS) {
		decide(decision, VERDICT_PASS, REASON_CONFORM);
		aux = AUX_SET(aux, EXCESS, 0);
	} else {
		aux = excess(running, packet, rule, aux, hash, now, now_ns, decision);
		once |= 1ULL << STAT_EXCESS_SHIFT;
	}
	__sync_fetch_and_add(&slot->bucket->stat[way], once);
	/* Another CPU's swap first: it saw this source too, and one KoD is enough. */
	if (aux != seen &&
	    __sync_val_compare_and_swap(&slot->bucket->aux[way], seen, aux) != seen &&
	    decision->verdict == VERDICT_KOD)
		decide(decision, VERDICT_DROP, REASON_LIMIT);
	if (admitted == GCRA_EXCESS &&
	    (AUX_GET(aux, EXCESS) == 1 || chance() % OFFENDER_SAMPLE == 0))
		note_offender(packet, decision->verdict, now_ns);
}

static __always_inline bool is_request(const struct packet *packet)
{
	return packet->mode == 0 || packet->mode == 1 || packet->mode == MODE_NTP_CLIENT;
}

static __always_inline const struct class_rule *classify(const struct running *running,
							 const struct packet *packet,
							 const struct slot *slot,
							 struct decision *decision)
{
	__u32 way = slot->way;
	__u64 aux = way < NTPGUARD_WAYS ? load(&slot->bucket->aux[bound_way(way)]) : 0;

	if (way < NTPGUARD_WAYS && is_class_cached(running, packet, aux))
		decision->class = AUX_GET(aux, CLASS) & (NTPGUARD_CLASSES - 1);
	else
		decision->class = class_by_prefix(running, packet);
	return &running->policy->classes[decision->class & (NTPGUARD_CLASSES - 1)];
}

static __always_inline __u8 judge(const struct running *running, const struct packet *packet,
				  struct decision *decision)
{
	struct slot slot = {.way = NO_WAY};
	__u64 hash = source_hash(packet->key);
	bool request = is_request(packet);

	if (request && !source_find(&slot, packet->key, hash))
		return 0;
	const struct class_rule *rule = classify(running, packet, &slot, decision);

	if (rule->action == ACTION_BLOCK)
		decide(decision, VERDICT_DROP, REASON_BLOCK);
	else if (packet->mode >= 6) /* CVE-2013-5211 */
		decide(decision, rule->flags & CLASS_CONTROL ? VERDICT_PASS : VERDICT_DROP,
		       REASON_CONTROL);
	else if (
		!request) /* never charged to its source: CVE-2016-7426. Room for: the answers' budget */
		decide(decision, VERDICT_PASS, REASON_ANSWER);
	else if (!packet->whole)
		decide(decision, VERDICT_DROP, REASON_MALFORMED);
	else if (rule->action == ACTION_EXEMPT)
		decide(decision, VERDICT_PASS, REASON_EXEMPT);
	else
		limit(running, packet, &slot, rule, hash, decision);
	return rule->flags;
}

SEC("xdp")
int ntpguard(struct xdp_md *ctx)
{
	struct packet packet = {};
	struct running running;
	struct decision decision = {.verdict = VERDICT_PASS, .reason = REASON_CONFORM};
	__u8 flags = 0;

	enum parsed parsed = parse(ctx, &packet);
	if (parsed == PARSED_OTHER || !read_running(&running))
		return XDP_PASS;
	if (running.policy->flags & POLICY_DESTINATIONS &&
	    !(address_flags(&packet.destination) & ADDRESS_DESTINATION))
		return XDP_PASS;

	if (running.mode == MODE_OFF)
		decide(&decision, VERDICT_PASS, REASON_OFF);
	else if (parsed == PARSED_ODD) /* room for: the odd budget */
		decide(&decision, VERDICT_PASS, REASON_ODD);
	else if (parsed == PARSED_MALFORMED)
		decide(&decision, VERDICT_DROP, REASON_MALFORMED);
	else
		flags = judge(&running, &packet, &decision);

	bool observe = running.mode == MODE_OBSERVE || flags & CLASS_OBSERVE;
	switch (account(&packet, &decision, observe)) {
	case VERDICT_PASS:
		return XDP_PASS;
	case VERDICT_KOD:
		return kiss(&packet) ? XDP_TX : XDP_DROP;
	default:
		return XDP_DROP;
	}
}

char _license[] SEC("license") = "GPL";
