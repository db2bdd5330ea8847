/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
#ifndef NTPGUARD_BTF_H
#define NTPGUARD_BTF_H

/* Names every enum and the trie keys, so that the object's BTF has them to compare with. */
const volatile struct abi_types {
	enum ntpguard_limits limits;
	enum ntpguard_family family;
	enum ntpguard_mode mode;
	enum ntpguard_action action;
	enum ntpguard_verdict verdict;
	enum ntpguard_reason reason;
	enum ntpguard_part part;
	enum ntpguard_test test;
	enum ntpguard_group group;
	enum ntpguard_root root;
	enum ntpguard_gcra gcra;
	enum ntpguard_aux aux;
	enum ntpguard_stat stat;
	enum ntpguard_key key;
	enum ntpguard_bound bound;
	enum ntpguard_priority priority;
	enum ntpguard_fraction fraction;
	enum ntpguard_signature_flags signature_flags;
	enum ntpguard_entry entry_values;
	enum ntpguard_class_flags class_flags;
	enum ntpguard_policy_flags policy_flags;
	enum ntpguard_prefix_value prefix_value;
	enum ntpguard_address_flags address_flags;
	struct prefix_ipv4 prefix_ipv4;
	struct prefix_ipv6 prefix_ipv6;
	struct entry entry;
} abi_types;

#endif
