"""A policy written back as TOML that reads as an equal policy."""

from typing import Any

from ntpguard.policy.model import ClassPolicy, Policy, SignaturePolicy
from ntpguard.policy.settings import CLASS_SETTINGS, SETTINGS, SIGNATURE_SETTINGS


def values_of(policy: Policy) -> dict[str, Any]:
    """Every setting's value by its key."""
    default = policy.classes[0]
    return {
        "interfaces": policy.interfaces,
        "mode": policy.mode,
        "ports": policy.ports,
        "destinations": policy.destinations,
        "upstreams": policy.upstreams,
        "xdp": policy.xdp,
        "on_exit": policy.on_exit,
        "sources.capacity": policy.capacity,
        "sources.ipv4_prefix": policy.ipv4_prefix,
        "sources.ipv6_prefix": policy.ipv6_prefix,
        "limit.rate": default.rate,
        "limit.burst": default.burst,
        "limit.leak": default.leak,
        "limit.leak_max": policy.leak_max,
        "kod.enabled": default.kod,
        "kod.interval": policy.kod_interval,
        "kod.patience": policy.kod_patience,
        "kod.flood": policy.kod_flood,
        "kod.max_rate": policy.kod_max_rate,
        "newcomers.rate": policy.newcomers_rate,
        "newcomers.established_after": policy.established_after,
        "ceiling.rate": policy.ceiling_rate,
        "answers.rate": policy.answers_rate,
        "odd.rate": policy.odd_rate,
    }


def to_toml(policy: Policy) -> str:
    """The whole policy, every setting stated."""
    values = values_of(policy)
    lines: list[str] = []
    section = ""
    for row in SETTINGS:
        if row.section != section:
            section = row.section
            lines += ["", f"[{section}]"]
        lines.append(f"{row.name} = {row.kind.write(values[row.key])}")
    for one in policy.classes[1:]:
        lines += ["", "[[class]]", *class_lines(one)]
    for signature in policy.signatures:
        lines += ["", "[[signature]]", *signature_lines(signature)]
    return "\n".join(lines) + "\n"


def class_lines(one: ClassPolicy) -> list[str]:
    """The settings of one class; prefixes of a file are written out."""
    lines = [f'name = "{one.name}"']
    for row in CLASS_SETTINGS:
        if row.name not in ("name", "prefixes_file"):
            lines.append(f"{row.name} = {row.kind.write(getattr(one, row.name))}")
    return lines


def signature_lines(one: SignaturePolicy) -> list[str]:
    """The settings of one signature that are stated."""
    return [
        f"{row.name} = {row.kind.write(getattr(one, row.name))}"
        for row in SIGNATURE_SETTINGS
        if getattr(one, row.name) is not None
    ]
