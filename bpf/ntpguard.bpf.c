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
#include "btf.h"

/* Alone in its section: the loader writes the whole of it. */
const volatile struct constants constants SEC(".rodata.constants");
struct inputs inputs;

/* A function that the verifier checks by itself, once, and not in every state of its callers. */
#define SEPARATE __attribute__((noinline))

#include "packet.h"
#include "inputs.h"
#include "gcra.h"
#include "bounds.h"
#include "sources.h"
#include "policy.h"
#include "kod.h"
#include "account.h"
#include "trial.h"
#include "limit.h"

static __always_inline bool is_request(const struct packet *packet)
{
	return packet->mode == 0 || packet->mode == 1 || packet->mode == MODE_NTP_CLIENT;
}

static __always_inline __u32 classify(const struct running *running, const struct packet *packet,
				      const struct slot *slot)
{
	if (slot->way < NTPGUARD_WAYS && is_class_cached(running, packet, slot->aux))
		return AUX_GET(slot->aux, CLASS);
	return value_by_prefix(running, packet) & (NTPGUARD_CLASSES - 1);
}

/* A CPU's own; emission_interval 0 is no bound. */
static __always_inline bool has_budget(__u64 *tat, const struct limit *limit, __u64 now)
{
	return !limit->emission_interval || conforms(tat, limit, now);
}

/* Answers to this host's own client are never charged to their source (CVE-2016-7426), and a flood of
 * them is no way around: those of no upstream share a budget.
 */
static __always_inline void answer(const struct running *running, const struct packet *packet,
				   __u64 now, struct decision *decision)
{
	bool pass = is_upstream(running, packet) ||
		    has_budget(&running->local->answers_tat, &running->policy->answers, now);

	decide(decision, pass ? VERDICT_PASS : VERDICT_DROP, REASON_ANSWER);
}

static __always_inline void judge_ntp(const struct running *running, const struct packet *packet,
				      __u64 now_ns, struct decision *decision)
{
	struct slot slot = {.way = NO_WAY};
	struct request request = {
		.packet = packet,
		.hash = keyed_hash(packet->key),
		.now_ns = now_ns,
		.now = gcra_clock(now_ns),
	};
	__u32 entry = running->entries >> packet->family & 1 ?
			      action_by_entry(&packet->source, packet->family, now_ns) :
			      ACTION_LIMIT;

	if (entry == ACTION_BLOCK) {
		decide(decision, VERDICT_DROP, REASON_ENTRY);
		return;
	}
	if (is_request(packet) && !source_find(&slot, packet->key, request.hash))
		return;
	request.class = classify(running, packet, &slot);
	request.rule = rule_at(running->policy, request.class, now_ns);
	decision->class = request.class;
	decision->observe |= !!(request.rule->flags & CLASS_OBSERVE);

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
}

/* What hides its ports may be anything, NTP too: a small budget of it passes. */
static __always_inline void odd(const struct running *running, __u64 now, struct decision *decision)
{
	bool pass = has_budget(&running->local->odd_tat, &running->policy->odd, now);

	decide(decision, pass ? VERDICT_PASS : VERDICT_DROP, REASON_ODD);
}

/* False: not a destination that is guarded. */
static __always_inline bool judge(const struct packet *packet, struct decision *decision,
				  __u32 parsed)
{
	struct running running;

	if (!read_running(&running))
		return false;
	if (running.policy->flags & POLICY_DESTINATIONS &&
	    !(address_flags(&packet->destination) & ADDRESS_DESTINATION << running.copy))
		return false;
	__u64 now_ns = clock_ns(running.local);
	__u32 mode = mode_at(&running, now_ns);
	if (mode == MODE_OFF) {
		decide(decision, VERDICT_PASS, REASON_OFF);
		return true;
	}
	decision->observe = mode == MODE_OBSERVE;
	if (parsed == PARSED_ODD)
		odd(&running, gcra_clock(now_ns), decision);
	else if (parsed == PARSED_MALFORMED)
		decide(decision, VERDICT_DROP, REASON_MALFORMED);
	else
		judge_ntp(&running, packet, now_ns, decision);
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
