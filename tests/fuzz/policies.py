"""The policies that the fuzzer judges by, compiled by ntpguard, as a C header."""

import ipaddress
from pathlib import Path

from ntpguard import abi
from ntpguard.policy.check import parse_policy
from ntpguard.policy.compile import compile_policy
from ntpguard.program import constants
from tests.bpf.guard import SEED
from tests.bpf.packets import SERVER4, SERVER6, SERVER_MAC

BUCKETS = 16  # so few that sources have to give way
EXEMPT, BLOCKED = "198.18.5.0/24", "198.18.6.0/24"
ALL = f"""
mode = "enforce"
ports = [123, 1123]
upstreams = ["203.0.113.8", "2001:db8:8::/64"]
[limit]
rate = "60/minute"
burst = 4
[newcomers]
rate = "20/second"
[ceiling]
rate = "100/second"
[[class]]
name = "exempt"
prefixes = ["{EXEMPT}", "2001:db8:5::/48"]
action = "exempt"
control = true
[[class]]
name = "blocked"
prefixes = ["{BLOCKED}", "2001:db8:6::/48"]
action = "block"
[[class]]
name = "narrow"
prefixes = ["198.18.7.128/25", "2001:db8:7::1/128"]
rate = "1/hour"
burst = 1
leak = "1/1024"
[[class]]
name = "canary"
prefixes = ["198.18.8.0/24"]
rate = "1/hour"
burst = 1
mode = "observe"
[[signature]]
name = "nixie"
source_port = 1337
when = "always"
action = "block"
[[signature]]
name = "micro"
fraction = "microseconds"
action = "block"
"""
POLICIES = {
    "defaults": 'mode = "enforce"\n',
    "all": ALL,
    "observe": ALL.replace('mode = "enforce"', 'mode = "observe"', 1),
    "strict": 'mode = "enforce"\n[limit]\nrate = "1/hour"\nburst = 1\nleak = "1/1"\n[kod]\ninterval = "1s"\n',
    "destinations": f'mode = "enforce"\ndestinations = ["{SERVER4}"]\n[limit]\nrate = "1/hour"\nburst = 1\n',
}


def _bytes(data: bytes) -> str:
    return "{" + ",".join(str(one) for one in data) + "}"


def _variant(text: str) -> str:
    policy = parse_policy(text)
    compiled = compile_policy(policy)
    table = abi.Table(buckets=BUCKETS, ipv4_prefix=32, ipv6_prefix=64, seed=SEED)
    frozen = bytes(constants(table, compiled, SERVER_MAC, inputs=True))
    prefixes = [
        f"{{{one.version}, {one.prefixlen}, {_bytes(one.network_address.packed)}, {value}u}}"
        for one, value in compiled.prefixes.items()
    ]
    local = []
    for address in (SERVER4, SERVER6):
        one = ipaddress.ip_address(address)
        packed = one.packed if one.version == 6 else bytes(10) + b"\xff\xff" + one.packed
        flags = abi.ADDRESS_LOCAL
        if one in policy.destinations:
            flags |= abi.ADDRESS_DESTINATION
        local.append(f"{{{_bytes(packed)}, {flags}}}")
    mode = {"enforce": "MODE_ENFORCE", "observe": "MODE_OBSERVE"}[policy.mode]
    return (
        f"{{.mode = {mode}, .constants = {_bytes(frozen)}, .policy = {_bytes(bytes(compiled.policy))}, "
        f".prefix_count = {len(prefixes)}, .prefixes = {{{', '.join(prefixes)}}}, "
        f".addresses = {{{', '.join(local)}}}}}"
    )


def write(path: Path) -> None:
    """The header, `variants`, in the order of POLICIES."""
    body = ",\n".join(_variant(text) for text in POLICIES.values())
    path.write_text(f"static struct variant variants[] = {{\n{body}\n}};\n", encoding="utf-8")
