"""What doctor makes of queues and offloads of NICs that are not here."""

import dataclasses
from pathlib import Path

import pytest

from ntpguard.doctor.finding import Guard, Host
from ntpguard.doctor.link import (
    attachment,
    judge_large_receive,
    judge_queues,
    large_receive,
    mtu,
    queues,
    vlan,
)
from ntpguard.kernel.nic import Channels, Nic
from ntpguard.policy.check import DEFAULT


def combined(used: int, most: int) -> Channels:
    return Channels(max_rx=0, max_tx=0, max_combined=most, rx=0, tx=0, combined=used)


def apart(used: int, most: int) -> Channels:
    return Channels(max_rx=most, max_tx=most, max_combined=0, rx=used, tx=used, combined=0)


@pytest.mark.parametrize(
    ("driver", "channels", "cpus", "remedy"),
    [
        ("ena", combined(8, 8), 8, "ethtool -L eth0 combined 4"),
        ("ena", combined(4, 8), 8, None),
        ("gve", apart(16, 16), 16, "ethtool -L eth0 rx 8 tx 8"),
        ("gve", apart(8, 16), 16, None),
        ("virtio_net", combined(4, 4), 2, "ethtool -L eth0 combined 2"),
        ("virtio_net", combined(1, 1), 2, "give the virtual machine more (libvirt: <driver queues='3'/>)"),
        ("virtio_net", combined(2, 4), 2, None),
        ("mlx5_core", combined(8, 8), 8, None),
        ("mlx5_core", combined(1, 8), 4, "ethtool -L eth0 combined 4"),
        ("i40e", combined(1, 1), 8, None),
        ("igb", apart(1, 4), 1, None),
    ],
)  # fmt: skip
def test_queues_are_judged_by_what_the_driver_needs_for_sending(
    driver: str, channels: Channels, cpus: int, remedy: str | None
) -> None:
    answer = judge_queues("eth0", driver, channels, cpus)
    assert (answer.result, answer.remedy) == ("warn" if remedy else "ok", remedy)
    assert f"{channels.receiving} of {channels.max_receiving} receive queues" in answer.found


def test_mlx5_is_shown_where_to_look_for_kods_that_did_not_leave() -> None:
    found = judge_queues("eth0", "mlx5_core", combined(8, 8), 8).found
    assert found.endswith("ethtool -S eth0 | grep xdp_tx_full")


def test_merged_frames_are_warned_of_and_each_offload_has_its_command() -> None:
    assert judge_large_receive("eth0", {"rx-lro": False, "rx-gro": True}).result == "ok"
    lro = judge_large_receive("eth0", {"rx-lro": True, "rx-gro-hw": False})
    assert (lro.result, lro.remedy) == ("warn", "ethtool -K eth0 lro off")
    both = judge_large_receive("eth0", {"rx-lro": True, "rx-gro-hw": True})
    assert both.remedy == "ethtool -K eth0 lro off && ethtool -K eth0 rx-gro-hw off"


@pytest.mark.parametrize(
    ("driver", "result"), [("ena", "ok"), ("mlx5_core", "ok"), ("e1000", "unknown"), (None, "unknown")]
)  # fmt: skip
def test_a_kernel_that_does_not_tell_is_answered_by_the_drivers_known(
    driver: str | None, result: str
) -> None:
    nic = Nic("eth0", 2, driver, 1500, "none", None, None, None, None, None)
    host = Host(Path("/sys/fs/bpf"), DEFAULT, None, Guard({}))
    assert attachment(host, nic).result == result
    large = dataclasses.replace(nic, mtu=9000)
    assert mtu(host, large).result == "warn"
    assert mtu(host, dataclasses.replace(large, xdp="skb")).result == "ok"


def test_what_a_driver_does_not_tell_is_unknown() -> None:
    nic = Nic("eth0", 2, None, 1500, "none", None, None, None, None, None)
    host = Host(Path("/sys/fs/bpf"), DEFAULT, None, Guard({}))
    assert {check(host, nic).result for check in (queues, vlan, large_receive)} == {"unknown"}
