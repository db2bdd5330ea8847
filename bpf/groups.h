/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The trial of KoDs (trial.h), a part of the ABI: included by ntpguard.h. */
#ifndef NTPGUARD_GROUPS_H
#define NTPGUARD_GROUPS_H

/* Which part of the trial of KoDs a source is in: these bits of its hash, of which neither its bucket
 * nor its shard nor its fingerprint depends.
 */
enum ntpguard_part {
	PART_CONTROL, /* never kissed */
	PART_TRIED,   /* kissed, the first time an interval later; all others: kissed at once */
	PART_SHIFT = 44,
	PART_BITS = 4,
};

enum ntpguard_group { GROUP_KISSED, GROUP_CONTROL, GROUPS };

/* KoDs, and what would have been KoDs in the control group, per CPU. */
struct kod_counters {
	__u64 heeded[GROUPS];
	__u64 unheeded[GROUPS];
};

/* What a source in the trial sent before and after its first (would-be) KoD: times of CLOCK_MONOTONIC,
 * 0 = not yet; requests as its stat word had them.
 */
struct trial {
	__u64 begin_ns;
	__u64 kod_ns;
	__u64 end_ns;
	__u32 begin_requests;
	__u32 kod_requests;
	__u32 end_requests;
	__u16 source_port;
	__u8 group;
	__u8 pad;
	__u8 header[NTPGUARD_HEADER_BYTES];
};

#endif
