"""A server and its clients, in network namespaces, with real daemons. Run it in `tests/private`."""

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ntpguard import abi, reading
from ntpguard.kernel import bpffs, libbpf
from tests import NTPGUARD
from tests.bpf.clang import compile_bpf
from tests.bpf.guard import part

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
SYS_PIDFD_GETFD, SO_RCVBUFFORCE = 438, 33  # asm-generic/unistd.h, asm-generic/socket.h
PEERS = BUILD / "peers"
CHRONYD = (str(PEERS / "usr/sbin/chronyd"),)
GENERATOR = BUILD / "generator.bpf.o"

SERVER4, CLIENT4 = "198.51.100.1", "198.51.100.2"
SERVER6, CLIENT6 = "2001:db8::1", "2001:db8::2"
SERVER, CLIENT = "server", "client"
KINDS = ("polite", "hasty", "abuser")
# of the simulated clients; generator.bpf.c knows them too
NETWORKS = {
    "polite": ("203.0.113.0/24", "2001:db8:71::/48"),
    "hasty": ("198.18.1.0/24",),
    "abuser": ("198.18.2.0/24",),
}
# a daemon that tries all the same cannot touch the machine's clock
CLOCKLESS = ("setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time")


def build_generator() -> Path:
    """The lab's own BPF object."""
    source = Path(__file__).with_name("generator.bpf.c")
    if not GENERATOR.exists() or GENERATOR.stat().st_mtime < source.stat().st_mtime:
        compile_bpf(source, GENERATOR)
    return GENERATOR


def inside(namespace: str, *command: str) -> list[str]:
    """`command` as run in a network namespace of the lab."""
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


def run(*command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a command, its output captured."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


@contextmanager
def namespace(name: str) -> Iterator[None]:
    """This process in another network namespace of the lab."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    libc = libbpf.ctypes.CDLL(None, use_errno=True)
    try:
        assert libc.setns(there, 0) == 0
        yield
    finally:
        assert libc.setns(home, 0) == 0
        os.close(home)
        os.close(there)


@dataclass
class Daemon:
    """A real daemon of the lab, and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    directory: Path

    def logged(self, text: str, within: float) -> str | None:
        """The first line with `text`, waited for that many seconds."""
        end = time.monotonic() + within
        while True:
            for line in self.log.read_text(errors="replace").splitlines():
                if text in line:
                    return line
            if time.monotonic() > end or self.process.poll() is not None:
                return None
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Lab:
    """Two network namespaces joined by a veth pair; the client's end has the sink on it."""

    directory: Path
    daemons: list[Daemon] = field(default_factory=list)
    kinds: ClassVar[tuple[str, ...]] = KINDS  # whom the sink tells apart
    _object: libbpf.Object | None = None
    _link: int = -1

    def __enter__(self) -> "Lab":
        build_generator()
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in (SERVER, CLIENT):
            run("ip", "netns", "add", name)
            run(*inside(name, "ip", "link", "set", "lo", "up"))
        pair = ["link", "add", "eth0", "netns", SERVER, "type", "veth"]
        run("ip", *pair, "peer", "name", "eth0", "netns", CLIENT)
        for name, ipv4, ipv6 in ((SERVER, SERVER4, SERVER6), (CLIENT, CLIENT4, CLIENT6)):
            run(*inside(name, "ip", "address", "add", f"{ipv4}/24", "dev", "eth0"))
            run(*inside(name, "ip", "address", "add", f"{ipv6}/64", "dev", "eth0", "nodad"))
            run(*inside(name, "ip", "link", "set", "eth0", "up"))
            # so that frames arrive natively while no XDP program is attached
            run(*inside(name, "ethtool", "-K", "eth0", "gro", "on"))
        self.route()
        self._attach_sink()
        return self

    def route(self) -> None:
        """The server's way to its clients; to be made again when its interface was down."""
        run(*inside(SERVER, "ip", "address", "replace", f"{SERVER6}/64", "dev", "eth0", "nodad"))
        for network in (one for networks in NETWORKS.values() for one in networks):
            via = CLIENT6 if ":" in network else CLIENT4
            run(*inside(SERVER, "ip", "route", "replace", network, "via", via))
        for client in (CLIENT4, CLIENT6):
            run(*inside(SERVER, "ping", "-c1", "-W2", client), check=False)

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self.daemons):
            daemon.stop()
        self.guard("down", check=False)
        if self._link >= 0:
            os.close(self._link)
        if self._object:
            self._object.close()
        for name in (SERVER, CLIENT):
            run("ip", "netns", "del", name, check=False)

    def link(self, name: str) -> tuple[int, bytes]:
        """Index and MAC address of eth0 in a namespace."""
        with namespace(name):
            text = run("ip", "-o", "link", "show", "eth0").stdout
        mac = text.split("link/ether ")[1].split()[0]
        return int(text.split(":")[0]), bytes.fromhex(mac.replace(":", ""))

    def _open_sink(self) -> libbpf.Object:
        return libbpf.Object(GENERATOR)

    def _attach_sink(self) -> None:
        self._object = self._open_sink()
        self._object.load()
        ifindex, _ = self.link(CLIENT)
        with namespace(CLIENT):
            self._link = libbpf.link_create(
                self._object.program_fd("sink"), ifindex, libbpf.XDP_FLAGS_DRV_MODE
            )

    def replies(self) -> dict[str, tuple[int, int]]:
        """(answered, kissed) by kind of simulated client, so far."""
        assert self._object
        found = {}
        for index, kind in enumerate(self.kinds):
            cpus = libbpf.map_lookup_percpu(
                self._object.map_fd("replies"), index.to_bytes(4, "little"), 16
            )
            answered = sum(int.from_bytes(raw[:8], "little") for raw in cpus)
            kissed = sum(int.from_bytes(raw[8:], "little") for raw in cpus)
            found[kind] = (answered, kissed)
        return found

    def guard(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The installed ntpguard command, on the server."""
        command = os.environ.get("NTPGUARD_COMMAND", NTPGUARD)
        return run(*inside(SERVER, *command.split(), *arguments), check=check)

    def kisses(self, address: str) -> bool:
        """Whether the guard that runs kisses a source at once: by its hash, one in 16 never is."""
        with namespace(SERVER), reading.open_running(bpffs.directory(None)) as guard:
            return part(address, guard.seed) > abi.PART_TRIED

    def start(
        self, namespace: str, name: str, command: Sequence[str], environment: dict[str, str]
    ) -> Daemon:
        """A daemon of ours in a namespace, its output in a log."""
        directory = self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        log = directory / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                inside(namespace, *CLOCKLESS, *command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )
        daemon = Daemon(process, log, directory)
        self.daemons.append(daemon)
        return daemon

    def chronyd(
        self, namespace: str, name: str, configuration: str, *, program: Sequence[str] = CHRONYD
    ) -> Daemon:
        """A real chronyd that leaves the machine's clock alone."""
        directory = self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o750)
        file = directory / "chrony.conf"
        file.write_text(
            f"{configuration}\npidfile {directory}/pid\nbindcmdaddress {directory}/command\n"
        )
        command = [*program, "-x", "-d", "-u", "root", "-f", str(file)]
        daemon = self.start(namespace, name, command, {})
        if not daemon.logged("chronyd version", 30):
            raise AssertionError(daemon.log.read_text())
        return daemon

    def configure(self, role: str, name: str, **environment: str) -> Path:
        """The directory etc as the virtual machine of that role has it."""
        root = self.directory / name
        settings = [f"{key}={value}" for key, value in environment.items()]
        run("env", f"ROOT={root}", *settings, str(ROOT / "vagrant/configure"), role)
        return root / "etc"

    def server(self) -> Daemon:
        """The chronyd that is protected, with its default settings."""
        etc = self.configure("chrony", "server", INTERFACE="eth0")
        return self.chronyd(SERVER, "server", f"confdir {etc}/chrony/conf.d")

    def hasty(self, server: str = SERVER4) -> Daemon:
        """A chronyd that asks 16 times a second."""
        etc = self.configure("client", "hasty", SERVER=server)
        return self.chronyd(CLIENT, "hasty", f"sourcedir {etc}/chrony/sources.d")

    def chronyc(self, namespace: str, name: str, *command: str) -> dict[str, int]:
        """The numbers that chronyc says about a chronyd of ours."""
        path = self.directory / name / "command"
        chronyc = str(PEERS / "usr/bin/chronyc")
        shown = run(*inside(namespace, chronyc, "-h", str(path), *command)).stdout
        return {
            name.strip(): int(value)
            for name, _, value in (line.partition(":") for line in shown.splitlines())
            if value.strip().isdigit()
        }

    def received(self) -> int:
        """Requests that the protected chronyd has received, as it says itself."""
        return self.chronyc(SERVER, "server", "serverstats")["NTP packets received"]


def set_buffer(pid: int, size: int) -> None:
    """Gives the UDP sockets of a process so many bytes of receive buffer (pidfd_getfd(2)), and
    leaves the machine's own default alone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"):
                continue
            with socket.socket(fileno=libc.syscall(SYS_PIDFD_GETFD, process, int(fd), 0)) as one:
                if one.family != socket.AF_UNIX and one.type == socket.SOCK_DGRAM:
                    one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size // 2)
    finally:
        os.close(process)


@contextmanager
def packet_socket() -> Iterator[socket.socket]:
    """A raw socket on the client's eth0, to send frames of simulated sources."""
    with namespace(CLIENT):
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        one.bind(("eth0", 0))
    try:
        yield one
    finally:
        one.close()
