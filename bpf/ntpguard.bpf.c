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

/* Alone in its section: the loader writes the whole of it. */
const volatile struct constants constants SEC(".rodata.constants");
const volatile struct abi_types abi_types;
struct inputs inputs;

/* A function that the verifier checks by itself, once, and not in every state of its callers. */
#define SEPARATE __attribute__((noinline))

#include "packet.h"
#include "gcra.h"
#include "bounds.h"
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

/* One request on its way through the limit. */
struct request {
	const struct packet *packet;
	const struct class_rule *rule;
	__u64 hash; /* of its source's key */
	__u64 now_ns;
	__u64 now; /* gcra units << GCRA_TAT_SHIFT */
	__u32 class;
};

static __always_inline bool grants(const struct running *running, __u32 bound, __u64 now,
				   __u32 priority)
{
	return bound_grants(&running->shared->bounds[bound].word, &running->local->shares[bound],
			    &running->policy->bounds[bound], now, priority);
}

/* A share of excess is answered anyway, so that who is spoofed is never silenced (CVE-2015-7705). Each of
 * the shards has its own budget: one flood empties one.
 */
static __always_inline bool leaks(const struct running *running, const struct request *request)
{
	if (chance() > request->rule->leak)
		return false;
	__u32 shard = request->hash >> 32 & (NTPGUARD_LEAK_SHARDS - 1);
	__u64 *tat = bpf_map_lookup_elem(&leak, &shard);
	return tat && gcra(tat, 0, &running->policy->leak_shard, request->now) == GCRA_CONFORMS;
}

/* Sources without a slot share one limit: never unlimited, never silenced. */
static __always_inline void untracked(const struct running *running, const struct request *request,
				      struct decision *decision)
{
	if (grants(running, BOUND_NEWCOMERS, request->now, PRIORITY_HIGH))
		decide(decision, VERDICT_PASS, REASON_UNTRACKED);
	else if (leaks(running, request))
		decide(decision, VERDICT_PASS, REASON_LEAK);
	else
		decide(decision, VERDICT_DROP, REASON_UNTRACKED);
}

/* Leaked, else kissed, else dropped. Returns what the source's aux word becomes. */
static __always_inline __u64 excess(const struct running *running, const struct request *request,
				    __u64 aux, struct decision *decision)
{
	const struct policy *policy = running->policy;
	__u16 now_kod = kod_clock(request->now_ns);
	bool due = kod_due(&aux, policy, now_kod);

	if (is_blocked_by_signature(policy, request->packet, policy->signatures_always,
				    policy->signatures)) {
		decide(decision, VERDICT_DROP, REASON_SIGNATURE);
	} else if (leaks(running, request)) {
		decide(decision, VERDICT_PASS, REASON_LEAK);
	} else if (due && request->rule->flags & CLASS_KOD && is_kissable(request->packet) &&
		   grants(running, BOUND_KOD, request->now, PRIORITY_HIGH)) {
		decide(decision, VERDICT_KOD, REASON_LIMIT);
		aux = kod_sent(aux, now_kod);
	} else {
		decide(decision, VERDICT_DROP, REASON_LIMIT);
	}
	return aux;
}

/* Gives a new source a slot, unless there are too many of them: a flood of forged sources shall not
 * wash the others out of the table.
 */
static __always_inline __u32 admit_newcomer(const struct running *running,
					    const struct request *request, const struct slot *slot,
					    __u64 aux)
{
	struct newcomer newcomer = {
		.key = request->packet->key,
		.owner = slot->owner,
		.aux = AUX_SET(aux, MARK, mark_clock(request->now_ns)),
		.now = request->now,
		.interval = request->rule->limit.emission_interval,
	};

	if (grants(running, BOUND_GATE, request->now, PRIORITY_HIGH))
		return source_insert(slot->bucket, &newcomer);
	count_gated();
	return NO_WAY;
}

/* The daemon has only so much to do, for established sources first. */
static __always_inline void ceiling(const struct running *running, __u64 now, bool established,
				    struct decision *decision)
{
	if (decision->verdict == VERDICT_PASS &&
	    running->policy->bounds[BOUND_CEILING].limit.emission_interval &&
	    !grants(running, BOUND_CEILING, now, established ? PRIORITY_HIGH : PRIORITY_LOW))
		decide(decision, VERDICT_DROP, REASON_CEILING);
}

static __always_inline void limit(const struct running *running, const struct request *request,
				  const struct slot *slot, struct decision *decision)
{
	struct bucket *bucket = slot->bucket;
	__u64 now = request->now;
	if (!bucket) /* a request has one; the verifier does not know */
		return;
	__u64 class = AUX_SET(AUX_SET(0, CLASS, request->class), GENERATION, running->generation);
	int admitted = GCRA_LOST;
	__u32 way = slot->way;

	if (way < NTPGUARD_WAYS) {
		admitted = gcra(&bucket->gcra[bound_way(way)], slot->owner, &request->rule->limit,
				now);
	} else if (way == NO_WAY) {
		way = admit_newcomer(running, request, slot, class);
		admitted = GCRA_CONFORMS;
	}
	if (way >= NTPGUARD_WAYS || admitted == GCRA_LOST) {
		untracked(running, request, decision);
		ceiling(running, now, false, decision);
		return;
	}
	way = bound_way(way);

	__u64 seen = load(&bucket->aux[way]);
	__u64 aux = AUX_SET(AUX_SET(seen, CLASS, request->class), GENERATION, running->generation);
	__u64 once = 1ULL << STAT_REQUESTS_SHIFT;
	if (admitted == GCRA_CONFORMS) {
		decide(decision, VERDICT_PASS, REASON_CONFORM);
		aux = AUX_SET(aux, EXCESS, 0);
	} else {
		aux = excess(running, request, aux, decision);
		once |= 1ULL << STAT_EXCESS_SHIFT;
	}
	ceiling(running, now, AUX_GET(seen, ESTABLISHED), decision);
	if (admitted == GCRA_CONFORMS &&
	    is_step_due(aux, running->policy->established_spacing, request->now_ns) &&
	    !bites(running->local, BOUND_GATE, now) && !bites(running->local, BOUND_CEILING, now))
		aux = step(aux, request->now_ns);
	__sync_fetch_and_add(&bucket->stat[way], once);
	/* Another CPU's swap first: it saw this source too, and one KoD is enough. */
	if (aux != seen && __sync_val_compare_and_swap(&bucket->aux[way], seen, aux) != seen &&
	    decision->verdict == VERDICT_KOD)
		decide(decision, VERDICT_DROP, REASON_LIMIT);
	if (admitted == GCRA_EXCESS &&
	    (AUX_GET(aux, EXCESS) == 1 || chance() % OFFENDER_SAMPLE == 0))
		note_offender(request->packet, decision->verdict, request->now_ns);
}

static __always_inline bool is_request(const struct packet *packet)
{
	return packet->mode == 0 || packet->mode == 1 || packet->mode == MODE_NTP_CLIENT;
}

static __always_inline __u32 classify(const struct running *running, const struct packet *packet,
				      const struct slot *slot)
{
	__u32 way = slot->way;
	__u64 aux = way < NTPGUARD_WAYS ? load(&slot->bucket->aux[bound_way(way)]) : 0;

	if (way < NTPGUARD_WAYS && is_class_cached(running, packet, aux))
		return AUX_GET(aux, CLASS);
	return value_by_prefix(running, packet) & (NTPGUARD_CLASSES - 1);
}

/* Answers to this host's own client are never charged to their source (CVE-2016-7426), and a flood of
 * them is no way around: those of no upstream share a budget.
 */
static __always_inline void answer(const struct running *running, const struct packet *packet,
				   __u64 now, struct decision *decision)
{
	bool pass = is_upstream(running, packet) ||
		    gcra(&running->local->answers_tat, 0, &running->policy->answers, now) ==
			    GCRA_CONFORMS;

	decide(decision, pass ? VERDICT_PASS : VERDICT_DROP, REASON_ANSWER);
}

/* Returns the flags of its class. */
static __always_inline __u8 judge_ntp(const struct running *running, const struct packet *packet,
				      __u64 now_ns, struct decision *decision)
{
	struct slot slot = {.way = NO_WAY};
	struct request request = {
		.packet = packet,
		.hash = source_hash(packet->key),
		.now_ns = now_ns,
		.now = gcra_clock(now_ns),
	};
	__u32 entry = running->entries >> packet->family & 1 ?
			      action_by_entry(&packet->source, packet->family, now_ns) :
			      ACTION_LIMIT;

	if (entry == ACTION_BLOCK) {
		decide(decision, VERDICT_DROP, REASON_ENTRY);
		return 0;
	}
	if (is_request(packet) && !source_find(&slot, packet->key, request.hash))
		return 0;
	request.class = classify(running, packet, &slot);
	request.rule = &running->policy->classes[request.class & (NTPGUARD_CLASSES - 1)];
	decision->class = request.class;

	if (entry != ACTION_EXEMPT && request.rule->action == ACTION_BLOCK)
		decide(decision, VERDICT_DROP, REASON_BLOCK);
	else if (packet->mode >= 6) /* CVE-2013-5211 */
		decide(decision, request.rule->flags & CLASS_CONTROL ? VERDICT_PASS : VERDICT_DROP,
		       REASON_CONTROL);
	else if (!is_request(packet))
		answer(running, packet, request.now, decision);
	else if (!packet->whole)
		decide(decision, VERDICT_DROP, REASON_MALFORMED);
	else if (entry == ACTION_EXEMPT)
		decide(decision, VERDICT_PASS, REASON_ENTRY);
	else if (request.rule->action == ACTION_EXEMPT)
		decide(decision, VERDICT_PASS, REASON_EXEMPT);
	else if (is_blocked_by_signature(running->policy, packet, 0,
					 running->policy->signatures_always))
		decide(decision, VERDICT_DROP, REASON_SIGNATURE);
	else
		limit(running, &request, &slot, decision);
	return request.rule->flags;
}

/* What hides its ports may be anything, NTP too: a small budget of it passes. */
static __always_inline void odd(const struct running *running, __u64 now, struct decision *decision)
{
	bool pass = gcra(&running->local->odd_tat, 0, &running->policy->odd, now) == GCRA_CONFORMS;

	decide(decision, pass ? VERDICT_PASS : VERDICT_DROP, REASON_ODD);
}

/* False: not a destination that is guarded. */
SEPARATE int judge(const struct packet *packet, struct decision *decision, __u32 parsed)
{
	struct running running;
	__u8 flags = 0;

	if (!packet || !decision || !read_running(&running))
		return false;
	if (running.policy->flags & POLICY_DESTINATIONS &&
	    !(address_flags(&packet->destination) & ADDRESS_DESTINATION << running.copy))
		return false;
	if (running.mode == MODE_OFF) {
		decide(decision, VERDICT_PASS, REASON_OFF);
		return true;
	}
	__u64 now_ns = clock_ns();
	if (parsed == PARSED_ODD)
		odd(&running, gcra_clock(now_ns), decision);
	else if (parsed == PARSED_MALFORMED)
		decide(decision, VERDICT_DROP, REASON_MALFORMED);
	else
		flags = judge_ntp(&running, packet, now_ns, decision);
	decision->observe = running.mode == MODE_OBSERVE || flags & CLASS_OBSERVE;
	return true;
}

SEC("xdp")
int ntpguard(struct xdp_md *ctx)
{
	struct packet packet = {};
	struct decision decision = {};

	enum parsed parsed = parse(ctx, &packet);
	if (parsed == PARSED_OTHER || !judge(&packet, &decision, parsed))
		return XDP_PASS;
	switch (account(&packet, &decision)) {
	case VERDICT_PASS:
		return XDP_PASS;
	case VERDICT_KOD:
		return kiss(ctx, &packet) ? XDP_TX : XDP_DROP;
	default:
		return XDP_DROP;
	}
}

char _license[] SEC("license") = "GPL";
