/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The ABI between the packet path and the control plane: every enum, every struct and every packed
 * word that user space reads or writes. ntpguard/abi.py and ntpguard/words.py mirror this file; a
 * test compares them with the BTF inside the object. A change here is a new NTPGUARD_ABI.
 *
 * Time. The limit counts in gcra units of 2^10 ns (1.024 us), kept in the upper 48 bits of a word, so
 * that a signed difference of two words is right across the wrap (9 years). The KoD memory counts in
 * kod units of 2^28 ns (0.268 s), 16 bits, 0 meaning never. A source's way to being established counts
 * in mark units of 2^30 ns (1.07 s), 10 bits: a wrap can only delay it.
 */
#ifndef NTPGUARD_H
#define NTPGUARD_H

#include <linux/types.h>

enum ntpguard_limits {
	NTPGUARD_ABI = 5,
	NTPGUARD_WAYS = 4,     /* slots in a bucket of the source table */
	NTPGUARD_CLASSES = 64, /* class 0 is the default, the file's [limit] */
	NTPGUARD_PORTS = 4,
	NTPGUARD_LEAK_SHARDS = 256,
	NTPGUARD_SIGNATURES = 16,
	NTPGUARD_ENTRIES = 65536, /* live entries, of each family */
	NTPGUARD_ENTRY_DEPTH =
		8, /* live entries that lie over one another, each outliving the one above */
	NTPGUARD_COPIES = 2,		  /* of each policy set: one running, one idle */
	NTPGUARD_DOCUMENT_BYTES = 524280, /* of the running policy's text */
	NTPGUARD_HEADER_BYTES = 48,	  /* RFC 5905, 7.3: without extension fields and MAC */
};

enum ntpguard_family { FAMILY_IPV4, FAMILY_IPV6, FAMILIES };

/* A zeroed state is MODE_OFF: whatever is half set up passes every packet. */
enum ntpguard_mode { MODE_OFF, MODE_OBSERVE, MODE_ENFORCE, MODES };

enum ntpguard_action { ACTION_LIMIT, ACTION_EXEMPT, ACTION_BLOCK, ACTIONS };

enum ntpguard_verdict { VERDICT_PASS, VERDICT_KOD, VERDICT_DROP, VERDICTS };

/* Why. A reason is counted with the verdict that it led to. */
enum ntpguard_reason {
	REASON_CONFORM,	  /* within its limit */
	REASON_EXEMPT,	  /* its class is exempt */
	REASON_LEAK,	  /* excess, answered anyway (CVE-2015-7705) */
	REASON_LIMIT,	  /* excess */
	REASON_UNTRACKED, /* its source has no slot in the source table: charged to [newcomers] */
	REASON_BLOCK,	  /* its class is blocked */
	REASON_ANSWER,	  /* modes 2, 4, 5: an answer to this host's own client */
	REASON_CONTROL,	  /* modes 6 and 7 */
	REASON_MALFORMED, /* not a whole NTP packet, or from an impossible source */
	REASON_ODD,	  /* a fragment, or a chain of headers too long to follow */
	REASON_OFF,	  /* mode off: not judged */
	REASON_OBSERVED,  /* mode observe: passed, whatever the verdict would have been */
	REASON_ENTRY,	  /* a live entry exempts or blocks it */
	REASON_SIGNATURE, /* a signature blocks its shape */
	REASON_CEILING,	  /* the daemon has enough to do: established sources come first */
	REASONS,
	REASON_ROOM = 16, /* counters have room for so many */
};

/* The root word: all that a packet needs to know of the running policy, read once per packet.
 *
 *   bits  0-1   enum ntpguard_mode
 *   bit   2     which copy of struct policy runs
 *   bit   3     which copy of the prefixes runs
 *   bit   4     which copy of struct document runs
 *   bit   5     there are live entries of IPv4
 *   bit   6     there are live entries of IPv6
 *   bits  8-17  generation of the prefixes (the class cached in a source is of one generation; a
 *               stale one could pass for new if 1,024 changes went by between two of its packets)
 *   bits 32-63  revision: counts commits
 */
enum ntpguard_root {
	ROOT_MODE_SHIFT = 0,
	ROOT_MODE_BITS = 2,
	ROOT_POLICY_SHIFT = 2,
	ROOT_PREFIXES_SHIFT = 3,
	ROOT_DOCUMENT_SHIFT = 4,
	ROOT_ENTRIES_SHIFT = 5, /* + enum ntpguard_family */
	ROOT_GENERATION_SHIFT = 8,
	ROOT_GENERATION_BITS = 10,
	ROOT_REVISION_SHIFT = 32,
	ROOT_REVISION_BITS = 32,
};

/* gcra word: what the limit knows of a source, changed by compare-and-swap only.
 *
 *   bits  0-3   state: BUSY while the slot is being filled
 *   bits  4-15  fingerprint of the key: bits 52-63 of its hash
 *   bits 16-63  theoretical arrival time (tat), gcra units
 */
enum ntpguard_gcra {
	GCRA_UNIT_SHIFT = 10, /* nanoseconds >> 10 */
	GCRA_BUSY = 1,
	GCRA_FINGERPRINT_SHIFT = 4,
	GCRA_FINGERPRINT_BITS = 12,
	GCRA_TAT_SHIFT = 16,
};

/* aux word: what the answer needs to know of a source, changed by one compare-and-swap per packet.
 *
 *   bits  0-5   class (where prefixes tell hosts of one source apart: the last one to take a request)
 *   bits  6-15  generation of the prefixes in which that class was found
 *   bits 16-23  excess requests since the last conforming one, saturating
 *   bits 24-39  time of the last KoD, sent or held back (once deaf: of the last excess), kod units,
 *               0 = never
 *   bits 40-41  excess requests later than 2 s after that KoD, saturating at 2 = unheeded; 3: none
 *               so far, and its next request told already that it was heeded
 *   bits 42-45  KoDs not heeded
 *   bit  46     established
 *   bits 47-48  well-spaced requests after the first, on the way to being established
 *   bits 49-58  time of the last of them, mark units
 *   bits 59-62  look of the last excess request
 *   bit  63     credit: an answer put by for an excess request of another look than the one before
 */
enum ntpguard_aux {
	AUX_CLASS_SHIFT = 0,
	AUX_CLASS_BITS = 6,
	AUX_GENERATION_SHIFT = 6,
	AUX_GENERATION_BITS = 10,
	AUX_EXCESS_SHIFT = 16,
	AUX_EXCESS_BITS = 8,
	AUX_KOD_TIME_SHIFT = 24,
	AUX_KOD_TIME_BITS = 16,
	AUX_AFTER_KOD_SHIFT = 40,
	AUX_AFTER_KOD_BITS = 2,
	AUX_UNHEEDED_SHIFT = 42,
	AUX_UNHEEDED_BITS = 4,
	AUX_ESTABLISHED_SHIFT = 46,
	AUX_ESTABLISHED_BITS = 1,
	AUX_STEPS_SHIFT = 47,
	AUX_STEPS_BITS = 2,
	AUX_MARK_SHIFT = 49,
	AUX_MARK_BITS = 10,
	AUX_LOOK_SHIFT = 59,
	AUX_LOOK_BITS = 4,
	AUX_CREDIT_SHIFT = 63,
	AUX_CREDIT_BITS = 1,
	KOD_UNIT_SHIFT = 28,  /* nanoseconds >> 28 */
	MARK_UNIT_SHIFT = 30, /* nanoseconds >> 30 */
};

/* stat word: requests in the upper half, excess in the lower, one atomic add for both. Both wrap at
 * 2^32; when excess does, it carries one request.
 */
enum ntpguard_stat {
	STAT_EXCESS_SHIFT = 0,
	STAT_REQUESTS_SHIFT = 32,
};

/* Source keys. IPv6: the upper 64 bits of the address, masked. IPv4: a tag that no unicast IPv6
 * source can have (ff00::/8 is multicast), the prefix length, the address. 0 is an empty slot; the
 * sources in ::/64 (unspecified, loopback, mapped: none belongs on a wire) share one tagged key.
 */
#define NTPGUARD_KEY_IPV4_TAG 0xff00000000000000ULL
#define NTPGUARD_KEY_ZERO_TAG 0xff01000000000000ULL
enum ntpguard_key { KEY_TAG_SHIFT = 48, KEY_IPV4_LENGTH_SHIFT = 32 };

/* Two adjacent cache lines: a scan reads the first, the second is there when it is needed. */
struct bucket {
	__u64 key[NTPGUARD_WAYS];
	__u64 gcra[NTPGUARD_WAYS];
	__u64 aux[NTPGUARD_WAYS];
	__u64 stat[NTPGUARD_WAYS];
};
_Static_assert(sizeof(struct bucket) == 128, "a bucket is two cache lines");

/* A limit, compiled: both in gcra units << GCRA_TAT_SHIFT. The limit's burst of n requests is a
 * burst_tolerance of (n - 1) emission intervals.
 */
struct limit {
	__u64 emission_interval;
	__u64 burst_tolerance;
};

/* The bounds that all sources share: each one word (a tat), of which a CPU takes a batch at a time. */
enum ntpguard_bound {
	BOUND_KOD,	 /* KoDs, all sources together */
	BOUND_NEWCOMERS, /* requests of sources that have no slot */
	BOUND_GATE,	 /* new sources given a slot */
	BOUND_CEILING,	 /* requests passed to the daemon */
	BOUNDS,
};

/* Low: passes only while less than half of the burst_tolerance is used up. */
enum ntpguard_priority { PRIORITY_LOW, PRIORITY_HIGH, PRIORITIES };

/* Nothing but a tat is in a bound's word: of its limit, the bits below a gcra unit count too. */
struct bound {
	struct limit limit; /* emission_interval 0: unlimited */
	__u32 batch;	    /* requests that a CPU takes at once; at least 1 */
	__u32 pad;
};

/* A CPU's share of a bound: what it has taken and not spent; when it was refused last (gcra units <<
 * GCRA_TAT_SHIFT): it does not ask again before the clock moves.
 */
struct share {
	__u64 refused[PRIORITIES];
	__u32 tokens[PRIORITIES];
};

/* What each CPU keeps for itself. The tats are of budgets that every CPU has whole. */
struct local {
	struct share shares[BOUNDS];
	__u64 answers_tat;
	__u64 odd_tat;
	__u64 clock_ns; /* as read when jiffies was so much */
	__u64 jiffies;
	__u64 drawn;	/* by chance, the last time */
	__u64 noted_ns; /* when offenders were noted last, and how many at that time */
	__u64 noted;
};

enum ntpguard_class_flags {
	CLASS_KOD = 1,	   /* excess may be kissed */
	CLASS_CONTROL = 2, /* modes 6 and 7 pass */
	CLASS_OBSERVE = 4, /* count what would happen, pass the packet */
};

struct class_rule {
	struct limit limit;
	__u32 leak; /* share of excess answered anyway, in 2^-32; all ones: the whole of it */
	__u8 action;
	__u8 flags;
	__u16 pad;
	__u64 until_ns; /* CLOCK_MONOTONIC; from then on, policy.classes_after holds. 0: for ever */
};
_Static_assert(sizeof(struct class_rule) == 32, "two rules to a cache line");

/* What a signature asks of the transmit timestamp's fraction besides the masked header: the mistakes
 * of FortiGate (a truncated count of microseconds, scaled) and systemd-timesyncd (nanoseconds, not
 * scaled).
 */
enum ntpguard_fraction { FRACTION_ANY, FRACTION_MICROSECONDS, FRACTION_NANOSECONDS, FRACTIONS };

enum ntpguard_signature_flags {
	SIGNATURE_OBSERVE = 1, /* counts its matches, decides nothing */
	SIGNATURE_SOURCE_PORT = 2,
};

/* A packet shape: matches if header & mask == value, as the bytes are on the wire, in a packet with a
 * whole NTP header. A signature that matches and does not observe blocks.
 */
struct signature {
	__u8 value[NTPGUARD_HEADER_BYTES];
	__u8 mask[NTPGUARD_HEADER_BYTES];
	__be16 source_port; /* with SIGNATURE_SOURCE_PORT */
	__u8 flags;
	__u8 fraction;
	__u32 pad;
};

/* Of one signature, per CPU. */
struct signature_counters {
	__u64 matched;
	__u64 blocked;
};

enum ntpguard_policy_flags {
	POLICY_PREFIXES_IPV4 = 1, /* some class or upstream has such prefixes */
	POLICY_PREFIXES_IPV6 = 2,
	POLICY_LONG_IPV4 = 4, /* some class's prefix is longer than a source: it cannot be cached */
	POLICY_LONG_IPV6 = 8,
	POLICY_DESTINATIONS = 16, /* only addresses marked ADDRESS_DESTINATION are guarded */
};

/* One copy of the running policy but for its prefixes. */
struct policy {
	struct bound bounds[BOUNDS];
	struct limit leak_shard; /* of each of the leak's shards */
	struct limit answers;	 /* on each CPU; emission_interval 0: unlimited */
	struct limit odd;	 /* on each CPU; emission_interval 0: unlimited */
	__u32 flags;
	__u16 kod_interval;	   /* kod units between two KoDs to one source */
	__u8 kod_patience;	   /* KoDs not heeded before a source is deaf */
	__u8 kod_flood;		   /* more excess since the last pass: no KoD */
	__u16 established_spacing; /* mark units between two well-spaced requests; at least 1 */
	__u8 signatures_always;	   /* the first so many signatures are tested on every request, */
	__u8 signatures;	   /* the rest, up to so many, on excess only */
	__u8 mode_after;
	__u8 pad[3];
	__u64 mode_until_ns; /* CLOCK_MONOTONIC; from then on, mode_after holds, whatever the root word
				says. 0: for ever */
	struct class_rule classes[NTPGUARD_CLASSES];
	struct class_rule classes_after[NTPGUARD_CLASSES];
	struct signature signature[NTPGUARD_SIGNATURES];
};

/* The running policy's text, a JSON document for people and for the control plane. */
struct document {
	__u64 length;
	char text[NTPGUARD_DOCUMENT_BYTES];
};

/* Prefix tries: key of the trie, and its value packed as class | length << 8 | upstream << 16. */
struct prefix_ipv4 {
	__u32 length;
	__u8 address[4];
};
struct prefix_ipv6 {
	__u32 length;
	__u8 address[16];
};
enum ntpguard_prefix_value {
	PREFIX_CLASS_SHIFT = 0,
	PREFIX_LENGTH_SHIFT = 8,
	PREFIX_UPSTREAM_SHIFT = 16, /* answers (modes 2, 4, 5) from here pass unlimited */
};

/* A live entry: value of a prefix in the tries of live entries. After it expires, what it lay over
 * holds again: the longest entry of at most `fallback` bits, the next that lives longer.
 */
struct entry {
	__u64 expires_ns; /* CLOCK_MONOTONIC; 0: never */
	__u8 action;	  /* ACTION_EXEMPT or ACTION_BLOCK */
	__u8 fallback;	  /* prefix length, or ENTRY_NO_FALLBACK */
	__u8 pad[6];
};
enum ntpguard_entry { ENTRY_NO_FALLBACK = 255 };

/* This host's addresses (IPv4 mapped into ::ffff:0:0/96): the only ones a KoD is sent from. */
struct address {
	union {
		__u8 bytes[16];
		__be32 words[4];
	};
};
enum ntpguard_address_flags {
	ADDRESS_LOCAL = 1,
	ADDRESS_DESTINATION = 2, /* << the copy of struct policy whose destination it is */
};

/* A word of which no other word shares the cache line. */
struct line {
	__u64 word;
	__u64 pad[7];
};
_Static_assert(sizeof(struct line) == 64, "a cache line");

/* The words all CPUs share. */
struct shared {
	struct line root;
	struct line bounds[BOUNDS]; /* tats */
};

/* What belongs to the source table and must outlive every program that uses it. */
struct table {
	__u32 abi;
	__u32 buckets; /* a power of two */
	__u64 seed[2];
	__u8 ipv4_prefix; /* the keys' prefix lengths: other lengths are another table */
	__u8 ipv6_prefix;
	__u8 pad[6];
};

/* Of one interface and one class, per CPU. `packets` and `bytes` (frame lengths) are what happened,
 * `observed` what would have happened to the packets that observe let pass.
 */
struct counters {
	__u64 packets[FAMILIES][VERDICTS][REASON_ROOM];
	__u64 observed[FAMILIES][VERDICTS][REASON_ROOM];
	__u64 bytes[FAMILIES][VERDICTS];
};

/* Of the source table, per CPU. sources held = inserted - replaced */
struct table_counters {
	__u64 inserted[FAMILIES];
	__u64 replaced[FAMILIES];
	__u64 full;  /* every way of the bucket held a source that is kept */
	__u64 lost;  /* a race for the slot */
	__u64 gated; /* too many new sources */
};

/* Details of a source that exceeds its limit: from its first excess since a pass and a sample of the
 * rest. Times are of CLOCK_MONOTONIC.
 */
struct offender {
	__u64 first_seen_ns;
	__u64 last_seen_ns;
	__u32 sampled[VERDICTS]; /* verdicts of the sampled packets */
	__u16 source_port;
	__u8 ttl; /* or hop limit */
	__u8 header_bytes;
	__u8 header[NTPGUARD_HEADER_BYTES];
};

/* TEST_INPUTS: clock and chance come from struct inputs. TEST_NO_TRIAL: every source is kissed at once:
 * a replay says what a policy does.
 */
enum ntpguard_test { TEST_INPUTS = 1, TEST_NO_TRIAL = 2 };

/* Load-time constants of one interface's program: frozen, so that the verifier removes what is off. */
struct constants {
	__u64 seed[2];
	__u64 ipv6_mask; /* of the key */
	__u32 bucket_mask;
	__u32 ipv4_mask;
	__u16 ports[NTPGUARD_PORTS]; /* network byte order; unused ones repeat the first */
	__u8 mac[6];
	__u8 ipv4_prefix;
	__u8 test; /* enum ntpguard_test */
};

/* Time and chance as inputs, for tests. */
struct inputs {
	__u64 clock_ns;
	__u32 chance;
	__u32 pad;
};

#include "groups.h"

#endif
