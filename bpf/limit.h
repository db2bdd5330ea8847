/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What becomes of a request that is neither exempt nor blocked: its source's limit, what is done with
 * excess (leaked, else kissed, else dropped), new sources, and the ceiling over all.
 */
#ifndef NTPGUARD_LIMIT_H
#define NTPGUARD_LIMIT_H

enum { LEAK_SHARD_BITS = 8 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NTPGUARD_LEAK_SHARDS);
	__type(key, __u32);
	__type(value, __u64);
} leak SEC(".maps");

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

/* What many sources share is granted evenly: by the coarse clock, all that has become free since its
 * last step would go to the daemon at once, more than its socket has room for.
 */
static __always_inline __u64 fine_now(void)
{
	return gcra_clock(fine_clock_ns());
}

static __always_inline bool grants(const struct running *running, __u32 bound, __u64 now,
				   __u32 priority)
{
	return bound_grants(&running->shared->bounds[bound].word, &running->local->shares[bound],
			    &running->policy->bounds[bound], now, priority);
}

_Static_assert(1 << LEAK_SHARD_BITS == NTPGUARD_LEAK_SHARDS, "shards");

/* Each of the leak's shards has its own budget: one flood empties one. The last half of it is for
 * established sources, so that a flood of forged ones does not take it from them.
 */
static __always_inline bool shard_grants(const struct running *running,
					 const struct request *request, bool established)
{
	__u32 shard = request->hash >> 32 & (NTPGUARD_LEAK_SHARDS - 1);
	const struct limit *limit = &running->policy->leak_shard;
	__u64 *tat = bpf_map_lookup_elem(&leak, &shard);

	if (!tat)
		return false;
	__s64 full = limit->burst_tolerance;
	/* staggered: emptied by one flood, they would all have the next answer at the same time */
	__s64 later = (limit->emission_interval >> LEAK_SHARD_BITS) * shard;
	__s64 most = (established ? full : full >> 1) - later;
	if (most < 0) /* a burst of one: nothing to stagger */
		most = 0;
	/* a tat further ahead than this is an older policy's: gcra brings it back */
	__s64 farthest = full + limit->emission_interval;
	__s64 ahead = load(tat) - request->now;
	if (ahead > most + LONGEST_TICK && ahead <= farthest)
		return false; /* by any clock */
	__u64 now = fine_now();
	ahead = load(tat) - now;
	if (ahead > most && ahead <= farthest)
		return false;
	return conforms(tat, limit, now);
}

/* What tells the senders behind one address apart, as 4 bits that a forger can neither compute nor
 * search: the distance, the port, the make of the header.
 */
static __always_inline __u64 look_of(const struct packet *packet, __u64 hash)
{
	const struct ntp_header *ntp = &packet->ntp;
	__u16 port = bpf_ntohs(packet->source_port);
	__u64 port_kind = port == NTP_PORT ? 0 : port < 1024 ? 1 : port < 32768 ? 2 : 3;
	__u64 make = packet->ttl | ntp->li_vn_mode << 8 | (__u8)ntp->precision << 16 |
		     (__u64)ntp->stratum << 24 | port_kind << 32;

	make |= (__u64) !!ntp->root_delay << 34 | (__u64) !!ntp->root_dispersion << 35 |
		(__u64) !!ntp->reference_id << 36 | (__u64) !!packet->words[2] << 37 |
		(__u64) !!packet->words[3] << 38 | (__u64) !!packet->words[4] << 39 |
		(__u64)(packet->payload > sizeof(*ntp)) << 40 | (__u64)!packet->plain << 41;
	return (make ^ hash) * (constants.seed[1] | 1) >> (64 - AUX_LOOK_BITS);
}

/* A share of excess is answered anyway, so that who is spoofed is never silenced (CVE-2015-7705). Beside
 * it, an eighth more is put by, one answer at a time, for a request that looks different from the one
 * before: most likely the victim's own, between those of a forger who does not know its look
 * (docs/explanation/attacks.md has the figures). Every answer put by was taken from the shard.
 */
static __always_inline bool leaks(const struct running *running, const struct request *request,
				  __u32 drawn, __u64 *aux)
{
	__u32 share = request->rule->leak;
	__u32 with_credit = share + (share >> 3) < share ? ~0U : share + (share >> 3);
	__u64 look = look_of(request->packet, request->hash);
	bool other = look != AUX_GET(*aux, LOOK);
	bool credit = AUX_GET(*aux, CREDIT);
	bool established = AUX_GET(*aux, ESTABLISHED);

	*aux = AUX_SET(*aux, LOOK, look);
	if (other && credit) {
		*aux = AUX_SET(*aux, CREDIT, 0);
		return true;
	}
	if (drawn <= share)
		return shard_grants(running, request, established);
	if (!other && !credit && drawn <= with_credit &&
	    shard_grants(running, request, established))
		*aux = AUX_SET(*aux, CREDIT, 1);
	return false;
}

/* Sources without a slot share one limit: never unlimited, never silenced. */
static __always_inline void untracked(const struct running *running, const struct request *request,
				      struct decision *decision)
{
	if (grants(running, BOUND_NEWCOMERS, fine_now(), PRIORITY_HIGH))
		decide(decision, VERDICT_PASS, REASON_UNTRACKED);
	else if (chance(running->local) >> 32 <= request->rule->leak &&
		 shard_grants(running, request, false))
		decide(decision, VERDICT_PASS, REASON_LEAK);
	else
		decide(decision, VERDICT_DROP, REASON_UNTRACKED);
}

/* Leaked, else kissed, else dropped. Returns what the source's aux word becomes. */
static __always_inline __u64 excess(const struct running *running, const struct request *request,
				    __u64 drawn, __u32 requests, __u64 aux,
				    struct decision *decision)
{
	const struct policy *policy = running->policy;
	__u16 now_kod = kod_clock(request->now_ns);
	bool due = kod_due(&aux, policy, now_kod);

	if (is_blocked_by_signature(policy, request->packet, policy->signatures_always,
				    policy->signatures)) {
		decide(decision, VERDICT_DROP, REASON_SIGNATURE);
	} else if (leaks(running, request, drawn >> 32, &aux)) {
		decide(decision, VERDICT_PASS, REASON_LEAK);
	} else if (due && request->rule->flags & CLASS_KOD &&
		   !is_used_up(&running->local->shares[BOUND_KOD], &policy->bounds[BOUND_KOD],
			       request->now, PRIORITY_HIGH) &&
		   is_kissable(request->packet) &&
		   grants(running, BOUND_KOD, request->now, PRIORITY_HIGH)) {
		__u32 tried = try_kod(request->packet, request->hash, requests, request->now_ns,
				      trial_options(aux, policy, decision->observe));
		decide(decision, tried & TRY_SENT ? VERDICT_KOD : VERDICT_DROP, REASON_LIMIT);
		aux = AUX_SET(AUX_SET(aux, KOD_TIME, now_kod), AFTER_KOD, tried & 3);
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
		.aux = aux,
		.now = request->now,
		.interval = request->rule->limit.emission_interval,
	};

	if (grants(running, BOUND_GATE, request->now, PRIORITY_HIGH))
		return source_insert(slot->bucket, slot->beside, &newcomer);
	count_gated();
	return NO_WAY;
}

/* The aux word of a source that is of the request's class from now on. */
static __always_inline __u64 in_class(__u64 aux, const struct running *running,
				      const struct request *request)
{
	return AUX_SET(AUX_SET(aux, CLASS, request->class), GENERATION, running->generation);
}

/* The daemon has only so much to do, for established sources first. */
static __always_inline void ceiling(const struct running *running, bool established,
				    struct decision *decision)
{
	if (decision->verdict == VERDICT_PASS &&
	    running->policy->bounds[BOUND_CEILING].limit.emission_interval &&
	    !grants(running, BOUND_CEILING, fine_now(), established ? PRIORITY_HIGH : PRIORITY_LOW))
		decide(decision, VERDICT_DROP, REASON_CEILING);
}

static __always_inline void limit(const struct running *running, const struct request *request,
				  const struct slot *slot, struct decision *decision)
{
	struct bucket *bucket = slot->bucket;
	__u64 now = request->now;
	if (!bucket) /* a request has one; the verifier does not know */
		return;
	__u64 seen = slot->aux;
	int admitted = GCRA_LOST;
	__u32 way = slot->way;
	bool foreign = false; /* the tat may be another class's of this policy */

	if (way < NTPGUARD_WAYS) {
		foreign = is_shared(running, request->packet) &&
			  AUX_GET(seen, GENERATION) == running->generation &&
			  AUX_GET(seen, CLASS) != request->class;
		admitted = gcra(&bucket->gcra[bound_way(way)], slot->owner, &request->rule->limit,
				now, !foreign);
	} else if (way == NO_WAY) {
		seen = AUX_SET(in_class(0, running, request), MARK, mark_clock(request->now_ns));
		way = admit_newcomer(running, request, slot, seen);
		if (way & BESIDE && slot->beside) {
			bucket = slot->beside;
			way ^= BESIDE;
		}
		admitted = GCRA_CONFORMS;
	}
	if (way >= NTPGUARD_WAYS || admitted == GCRA_LOST) {
		untracked(running, request, decision);
		ceiling(running, false, decision);
		return;
	}
	way = bound_way(way);

	__u64 aux = seen;
	__u64 once = 1ULL << STAT_REQUESTS_SHIFT;
	__u64 drawn = 0;
	if (admitted == GCRA_CONFORMS || !foreign) /* whose the tat is from now on */
		aux = in_class(aux, running, request);
	if (admitted == GCRA_CONFORMS) {
		decide(decision, VERDICT_PASS, REASON_CONFORM);
		aux = AUX_SET(aux, EXCESS, 0);
		if (AUX_GET(aux, KOD_TIME))
			aux |= after_conforming(aux, kod_clock(request->now_ns));
	} else {
		drawn = chance(running->local);
		aux = excess(running, request, drawn,
			     load(&bucket->stat[way]) >> STAT_REQUESTS_SHIFT, aux, decision);
		once |= 1ULL << STAT_EXCESS_SHIFT;
	}
	ceiling(running, AUX_GET(seen, ESTABLISHED), decision);
	if (admitted == GCRA_CONFORMS &&
	    is_step_due(aux, running->policy->established_spacing, request->now_ns) &&
	    !bites(running->local, BOUND_GATE, now) && !bites(running->local, BOUND_CEILING, now))
		aux = step(aux, request->now_ns);
	__sync_fetch_and_add(&bucket->stat[way], once);
	/* Another CPU's swap first: it saw this source too, and one KoD, one answer put by is enough. */
	if (aux != seen && __sync_val_compare_and_swap(&bucket->aux[way], seen, aux) != seen &&
	    (decision->verdict == VERDICT_KOD || AUX_GET(seen, CREDIT) > AUX_GET(aux, CREDIT)))
		decide(decision, VERDICT_DROP, REASON_LIMIT);
	if ((seen ^ aux) & AUX_HEEDING && !decision->observe)
		count_heeding(seen, aux, request->hash);
	if (admitted == GCRA_EXCESS &&
	    (AUX_GET(aux, EXCESS) == 1 || (__u32)drawn <= OFFENDER_SAMPLE))
		note_offender(running->local, request->packet, decision->verdict, request->now_ns);
}

#endif
