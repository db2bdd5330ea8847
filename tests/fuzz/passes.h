/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What must hold of counters, of live entries, and of the passes that a source gets over time. */
#ifndef FUZZ_PASSES_H
#define FUZZ_PASSES_H

enum { CLASSES_USED = 8, PAIRS_MOST = 256 };

/* ---- one frame, counted once, as what happened to it ---- */

static struct counters *the_counters(void)
{
	return (void *)map_of(&counters)->values;
}

static void forget_counted(void)
{
	memset(the_counters(), 0, CLASSES_USED * sizeof(struct counters));
}

struct counted {
	unsigned times, class, family, verdict, reason;
};

static struct counted happened, would; /* to the last frame; would: had it not been observed only */

static void find_counted(bool observed, struct counted *found)
{
	*found = (struct counted){};
	for (unsigned class = 0; class < CLASSES_USED; class ++) {
		struct counters *one = the_counters() + class;
		__u64 *cells = observed ? &one->observed[0][0][0] : &one->packets[0][0][0];
		for (unsigned i = 0; i < FAMILIES * VERDICTS * REASON_ROOM; i++)
			if (cells[i])
				*found = (struct counted){found->times + cells[i], class,
							  i / (VERDICTS * REASON_ROOM),
							  i / REASON_ROOM % VERDICTS,
							  i % REASON_ROOM};
	}
}

/* Whether the frame was judged. */
static bool require_counted(int code, size_t size)
{
	static int codes[VERDICTS] = {XDP_PASS, XDP_TX, XDP_DROP};

	find_counted(false, &happened);
	find_counted(true, &would);
	REQUIRE(happened.times <= 1 && would.times <= happened.times);
	if (!happened.times) {
		REQUIRE(code == XDP_PASS);
		return false;
	}
	REQUIRE(code == codes[happened.verdict]);
	REQUIRE(the_counters()[happened.class].bytes[happened.family][happened.verdict] == size);
	if (would.times)
		REQUIRE(happened.verdict == VERDICT_PASS);
	else
		would = happened;
	return true;
}

/* ---- live entries ---- */

enum entries_over { ENTRIES_NONE, ENTRIES_EXEMPT, ENTRIES_BLOCK, ENTRIES_SOME };

/* What the live entries over an IPv4 source say if they agree and none ends; SOME: it depends. */
static enum entries_over entries_over(unsigned char *source)
{
	struct map *map = map_of(&entries_ipv4);
	enum entries_over over = ENTRIES_NONE;

	for (size_t i = 0; i < map->count; i++) {
		struct prefix_ipv4 *prefix = (void *)(map->keys + i * map->key);
		struct entry *entry = (void *)(map->values + i * map->value);
		if (!begins_with(source, prefix->address, prefix->length))
			continue;
		enum entries_over says =
			entry->action == ACTION_BLOCK ? ENTRIES_BLOCK : ENTRIES_EXEMPT;
		if (entry->expires_ns || (over != ENTRIES_NONE && over != says))
			return ENTRIES_SOME;
		over = says;
	}
	return over;
}

/* ---- passes <= burst + rate * elapsed, of a source in a class; and so for the leak ---- */

struct passes {
	unsigned char source[8];
	unsigned class, reason;
	__u64 begin, count; /* begin: gcra units */
};

static struct passes passes[PAIRS_MOST];
static size_t pairs;
static __u64 given_away; /* slots: who gets one anew, begins anew */

static void forget_passes(void)
{
	pairs = 0;
}

/* The first 64 bits of an IPv6 source, an IPv4 one after a tag. */
static void source_of(unsigned char *frame, unsigned char *source)
{
	size_t at = 12;

	while (be16(frame + at) == 0x8100 || be16(frame + at) == 0x88a8)
		at += 4;
	memset(source, 0xff, 8);
	if (happened.family == FAMILY_IPV4)
		memcpy(source + 4, frame + at + 2 + 12, 4);
	else
		memcpy(source, frame + at + 2 + 8, 8);
}

static struct passes *passes_of(unsigned char *frame, __u64 now)
{
	struct passes one = {.class = would.class, .reason = would.reason, .begin = now};

	source_of(frame, one.source);
	for (size_t i = 0; i < pairs; i++)
		if (!memcmp(passes[i].source, one.source, 8) && passes[i].class == one.class &&
		    passes[i].reason == one.reason)
			return &passes[i];
	if (pairs == PAIRS_MOST)
		return NULL;
	passes[pairs] = one;
	return &passes[pairs++];
}

/* The last frame, judged, is charged to its source. */
static void charge(unsigned char *frame)
{
	struct table_counters *table = (void *)map_of(&table_counters)->values;
	__u64 now = inputs.clock_ns >> GCRA_UNIT_SHIFT;
	__u64 given = table->replaced[0] + table->replaced[1] + table->lost;

	if (given != given_away)
		forget_passes();
	given_away = given;
	if (would.verdict != VERDICT_PASS ||
	    (would.reason != REASON_CONFORM && would.reason != REASON_LEAK))
		return;
	bool leak = would.reason == REASON_LEAK;
	struct limit *limit = leak ? &running_policy()->leak_shard :
				     &running_policy()->classes[would.class].limit;
	__u64 interval = limit->emission_interval >> GCRA_TAT_SHIFT;
	struct passes *one = passes_of(frame, now);
	if (!one)
		return;
	one->count++;
	/* one answer of the leak may have been put by before the first was given */
	__u64 most = 1 + leak +
		     ((limit->burst_tolerance >> GCRA_TAT_SHIFT) + now - one->begin) / interval;
	REQUIRE(one->count <= most);
}

#endif
