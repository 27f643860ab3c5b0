"""The lab is real hosts and leaves the machine as it found it."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import libvirt
import pytest

from deploy.lab import network
from deploy.lab.container import CHECKOUT, running_containers
from deploy.lab.errors import LabError
from deploy.lab.host import Host
from deploy.lab.lab import Lab, running_labs
from deploy.lab.process import identify, is_alive

pytestmark = [
    pytest.mark.lab,
    pytest.mark.libvirt,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root, for namespaces and libvirtd"),
    pytest.mark.skipif(shutil.which("libvirtd") is None, reason="libvirtd is not installed"),
]

PAUSED_GUEST = """
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='network'><source network='lab'/><model type='virtio'/></interface>
  </devices>
</domain>
"""


@pytest.fixture
def new_lab() -> Iterator[Callable[[], Lab]]:
    """Make labs that are down; each is ended after the test."""
    end_labs_of_killed_runs()
    labs: list[Lab] = []
    own = identify(os.getpid())
    assert own is not None
    place = Path(tempfile.mkdtemp(prefix=f"vmorch-lab-{own.pid}-{own.started}-"))

    def make() -> Lab:
        labs.append(Lab(f"t-{secrets.token_hex(4)}", place / str(len(labs))))
        return labs[-1]

    yield make
    for lab in labs:
        lab.down()
    place.rmdir()


def end_labs_of_killed_runs() -> None:
    """A run that was killed could not end its labs; their directories say which process it was."""
    for name, directory in running_labs():
        maker = re.match(r"vmorch-lab-(\d+)-(\d+)-", directory.parent.name)
        if maker is None:
            continue
        process = identify(int(maker[1]))
        if process is None or process.started != int(maker[2]):
            Lab(name, directory).down()
            shutil.rmtree(directory.parent, ignore_errors=True)


@pytest.fixture
def lab(new_lab: Callable[[], Lab]) -> Lab:
    """A lab of two hosts without a control plane."""
    made = new_lab()
    made.up(hosts=2, control=False)
    return made


def create_paused_guest(host: Host, name: str) -> None:
    connection = libvirt.open(host.uri)
    try:
        connection.createXML(PAUSED_GUEST.format(name=name), libvirt.VIR_DOMAIN_START_PAUSED)
    finally:
        connection.close()


def can_reach(host: Host, other: str) -> bool:
    script = f"import socket; socket.create_connection(('{other}', 16509), 1)"
    return host.run([sys.executable, "-c", script], check=False).returncode == 0


def machine_network() -> str:
    """All that the machine's own network namespace holds and a lab could change."""
    commands = [["ip", "-json", "link"], ["ip", "-json", "address"], ["ip", "route", "show", "table", "all"]]
    commands += [["ip", "rule"], ["ip", "netns", "list"]]
    commands += [command for command in (["nft", "list", "ruleset"], ["iptables-save"]) if shutil.which(command[0])]
    # counters and lifetimes run on by themselves
    volatile = {"valid_life_time", "preferred_life_time"}
    said = []
    for command in commands:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "-json" in command:
            text = json.dumps(json.loads(text, object_hook=lambda one: {k: one[k] for k in one if k not in volatile}))
        said.append("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return "\n".join(said)


def machine_mounts() -> set[str]:
    """Mount points of the machine that a lab host covers with its own."""
    ours = ("/srv", "/run", "/dev", "/etc", "/proc", "/sys", "/var")
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return {point for point in points if point.startswith(ours)}


def traces(directory: Path) -> list[str]:
    """Processes, mounts and files of this machine that tell of a lab in `directory`."""
    found = [
        f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line
    ]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            what = (entry / "cmdline").read_bytes() + (entry / "mountinfo").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in what:
            found.append(f"process {entry.name}")
    return found + ([f"directory {directory}"] if directory.exists() else [])


def namespaces(pids: list[int]) -> set[str]:
    return {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids for kind in ("net", "mnt", "uts", "ipc", "pid")}


def pinned_namespaces() -> list[str]:
    """Namespaces that the machine's mount table or this process keeps alive without any process in them."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - nsfs " in line]
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return mounts + [target for target in opened if target.split(":")[0] in ("net", "mnt", "uts", "ipc", "pid")]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


def test_hosts_are_different_machines_that_reach_each_other_by_name(lab: Lab) -> None:
    first, second = lab.hosts
    names = [host.run(["hostname"]).stdout.strip() for host in (first, second)]
    machine_ids = {host.run(["cat", "/etc/machine-id"]).stdout for host in (first, second)}
    machine_ids.add(Path("/etc/machine-id").read_text())
    uuids = set()
    for host in (first, second):
        connection = libvirt.open(host.uri)
        assert connection.getHostname() == host.name
        uuids.add(connection.getCapabilities().split("<uuid>")[1].split("<")[0])
        connection.close()
    assert names == ["hv-01", "hv-02"]
    assert len(machine_ids) == 3
    assert uuids == {str(first.uuid), str(second.uuid)}
    assert can_reach(first, "hv-02")
    assert can_reach(second, "hv-01")


def test_a_host_offers_emulation_only(lab: Lab) -> None:
    host = lab.host("hv-01")
    devices = host.run(["ls", "/dev", "/dev/net"]).stdout.split()
    assert "kvm" not in devices
    assert {"null", "ptmx", "shm", "urandom", "tun"} <= set(devices)
    assert "<domain type='kvm'" not in host.run(["virsh", "capabilities"]).stdout


def test_a_paused_guest_lives_on_the_labs_network(lab: Lab) -> None:
    host = lab.host("hv-01")
    create_paused_guest(host, "web")
    assert list(host.qemus()) == ["web"]
    assert lab.host("hv-02").qemus() == {}
    bridge_ports = host.run(["ls", f"/sys/class/net/{network.HOST_BRIDGE}/brif"]).stdout.split()
    assert len(bridge_ports) == 2


# a DHCPDISCOVER for a hardware address no lab uses, with a broadcast answer; prints the address that was offered
DISCOVER = """
import socket, struct
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br0")
link.settimeout(10)
link.bind(("", 68))
header = struct.pack("!4BIHH16s16s192s", 1, 1, 6, 0, 7, 0, 0x8000, b"", bytes.fromhex("525400aabbcc"), b"")
link.sendto(header + bytes.fromhex("63825363" "350101" "ff"), ("255.255.255.255", 67))
print(socket.inet_ntoa(link.recv(2048)[16:20]))
"""


def test_the_labs_network_offers_addresses_to_guests(lab: Lab) -> None:
    offered = IPv4Address(lab.host("hv-02").run([sys.executable, "-c", DISCOVER]).stdout.strip())
    assert network.DHCP_FIRST <= offered <= network.DHCP_LAST


def test_hosts_share_one_directory_and_each_has_its_own(lab: Lab) -> None:
    first, second = lab.hosts
    for place in ("shared", "local"):
        first.run(["sh", "-c", f"echo {place} > /srv/vmorch/{place}/note"])
    assert second.run(["cat", "/srv/vmorch/shared/note"]).stdout == "shared\n"
    assert (first.local / "note").read_text() == "local\n"
    assert second.run(["ls", "/srv/vmorch/local"]).stdout == ""
    assert (first.shared / "note").stat().st_mode & 0o077 == 0


def test_a_power_cut_takes_all_processes_and_keeps_the_disks(lab: Lab) -> None:
    host = lab.host("hv-01")
    host.run(["virsh", "define", "/dev/stdin"], text=PAUSED_GUEST.format(name="kept"))
    host.run(["sh", "-c", "echo stays > /srv/vmorch/local/file; echo goes > /run/file"])
    create_paused_guest(host, "running")
    processes = [identify(pid) for pid in host.container.processes()]
    host.power_cut()
    assert not host.is_on()
    assert not [process for process in processes if process is not None and is_alive(process)]
    assert not can_reach(lab.host("hv-02"), "hv-01")

    host.boot()
    assert host.run(["cat", "/srv/vmorch/local/file"]).stdout == "stays\n"
    assert host.run(["ls", "/run/file"], check=False).returncode != 0
    assert host.run(["virsh", "list", "--all", "--name"]).stdout.split() == ["kept"]
    assert can_reach(lab.host("hv-02"), "hv-01")


def test_a_killed_libvirtd_leaves_its_guests_running_and_is_started_by_hand(lab: Lab) -> None:
    host = lab.host("hv-01")
    create_paused_guest(host, "web")
    guests, before = host.qemus(), host.pids()
    host.kill("libvirtd")
    assert host.pids() == {}
    assert host.qemus() == guests
    host.start("libvirtd")
    assert host.pids()["libvirtd"] != before["libvirtd"]
    assert host.run(["virsh", "list", "--name"]).stdout.split() == ["web"]
    with pytest.raises(LabError, match="agent does not run"):
        host.kill("agent")


def test_a_cut_link_silences_a_host_until_it_is_restored(lab: Lab) -> None:
    first, second = lab.hosts
    first.cut_link()
    assert not first.status().cable
    assert not can_reach(second, "hv-01")
    first.restore_link()
    until(lambda: can_reach(second, "hv-01"))


def test_a_frozen_host_does_nothing_until_it_is_thawed(lab: Lab) -> None:
    host = lab.host("hv-01")
    create_paused_guest(host, "web")
    host.freeze()
    assert host.status().power == "frozen"
    with pytest.raises(LabError, match="frozen"):
        host.run(["true"])
    host.thaw()
    assert host.run(["virsh", "list", "--name"]).stdout.split() == ["web"]


def test_a_frozen_host_can_lose_its_power(lab: Lab) -> None:
    host = lab.host("hv-01")
    host.freeze()
    host.power_cut()
    host.boot()
    assert host.status().power == "on"


def test_a_command_that_takes_too_long_is_killed(lab: Lab) -> None:
    host = lab.host("hv-01")
    with pytest.raises(subprocess.TimeoutExpired):
        host.run(["sleep", "1000"], timeout=0.2)
    until(lambda: "sleep" not in host.run(["ps", "-eo", "comm="]).stdout)


def test_two_labs_at_once_do_not_meet(lab: Lab, new_lab: Callable[[], Lab]) -> None:
    other = new_lab()
    other.up(hosts=1, control=False)
    create_paused_guest(lab.host("hv-01"), "web")
    assert other.host("hv-01").qemus() == {}
    assert other.host("hv-01").address == lab.host("hv-01").address
    assert other.host("hv-01").uuid != lab.host("hv-01").uuid
    other.down()
    assert list(lab.host("hv-01").qemus()) == ["web"]
    assert can_reach(lab.host("hv-02"), "hv-01")


def test_another_process_finds_the_lab_by_its_name(lab: Lab) -> None:
    cli = [sys.executable, "-m", "deploy.lab"]
    status = subprocess.run(
        [*cli, "status", "--name", lab.name, "--json"], cwd=CHECKOUT, capture_output=True, check=True
    )
    assert [host["power"] for host in json.loads(status.stdout)["hosts"]] == ["on", "on"]
    assert (lab.name, lab.directory) in running_labs()
    done = subprocess.run(
        [*cli, "exec", "--name", lab.name, "hv-02", "sh", "-c", "hostname; exit 7"],
        cwd=CHECKOUT, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == (b"hv-02\n", 7)
    subprocess.run([*cli, "down", "--name", lab.name], cwd=CHECKOUT, capture_output=True, check=True)
    assert traces(lab.directory) == []
    with pytest.raises(LabError, match="there is no lab"):
        Lab.attach(lab.name)


def test_up_repairs_what_is_missing_and_keeps_the_rest(lab: Lab) -> None:
    first, second = lab.hosts
    create_paused_guest(first, "web")
    first.cut_link()
    first.kill("libvirtd")
    second.power_cut()
    lab.control.power_cut()
    lab.up(hosts=3, control=False)
    assert [host.status().power for host in lab.hosts] == ["on", "on", "on"]
    assert list(first.qemus()) == ["web"]
    until(lambda: can_reach(first, "hv-02") and can_reach(first, "hv-03"))


def test_disks_that_are_kept_are_there_at_the_next_up(lab: Lab) -> None:
    lab.host("hv-01").run(["sh", "-c", "echo stays > /srv/vmorch/local/file"])
    lab.down(keep=True)
    assert traces(lab.directory) == [f"directory {lab.directory}"]
    lab.up(hosts=2, control=False)
    assert lab.host("hv-01").run(["cat", "/srv/vmorch/local/file"]).stdout == "stays\n"


def test_a_lab_leaves_the_machine_as_it_found_it(new_lab: Callable[[], Lab]) -> None:
    lab = new_lab()
    network_before, mounts_before, pinned_before = machine_network(), machine_mounts(), pinned_namespaces()
    lab.up(hosts=2, control=False)
    create_paused_guest(lab.host("hv-01"), "web")
    assert machine_network() == network_before
    assert machine_mounts() == mounts_before
    containers = [lab.control.container, *(host.container for host in lab.hosts)]
    assert len(namespaces([container.pid() for container in containers]) - namespaces([os.getpid()])) == 15
    processes = [identify(pid) for container in containers for pid in container.processes()]
    assert len(processes) >= 7
    lab.down()
    assert traces(lab.directory) == []
    assert not [process for process in processes if process is not None and is_alive(process)]
    assert pinned_namespaces() == pinned_before
    assert machine_network() == network_before
    assert machine_mounts() == mounts_before
    lab.down()


@pytest.mark.parametrize(
    "moment", ["ctl/init.json", "hv-01/plan.json", "hv-01/run/plugged-in", "hv-02/log/libvirtd.log"]
)
def test_leftovers_of_a_killed_up_are_cleaned_by_the_next(new_lab: Callable[[], Lab], moment: str) -> None:
    lab = new_lab()
    script = "import sys; from deploy.lab.lab import Lab; Lab(*sys.argv[1:]).up(hosts=2, control=False)"
    killed = subprocess.Popen([sys.executable, "-c", script, lab.name, str(lab.directory)], cwd=CHECKOUT)
    until(lambda: (lab.directory / moment).exists() or killed.poll() is not None)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    left = {init for _, place, init in running_containers() if place.parent == lab.directory}
    lab.up(hosts=2, control=False)
    now = {init for _, place, init in running_containers() if place.parent == lab.directory}
    assert len(now) == 3
    assert not left & now
    assert can_reach(lab.host("hv-01"), "hv-02")


def test_leftovers_whose_files_are_gone_are_ended_too(lab: Lab) -> None:
    shutil.rmtree(lab.directory)
    lab.down()
    assert traces(lab.directory) == []


def test_a_recycled_pid_is_never_killed(lab: Lab) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        record = lab.host("hv-01").directory / "init.json"
        lab.host("hv-01").power_cut()
        stale = json.loads(record.read_text())
        record.write_text(json.dumps({**stale, "pid": bystander.pid}))
        assert not lab.host("hv-01").is_on()
        lab.host("hv-01").power_cut()
        lab.down()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_directory_that_holds_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    lab = Lab("t-foreign", tmp_path)
    with pytest.raises(LabError, match="holds no lab"):
        lab.up(hosts=1, control=False)
    with pytest.raises(LabError, match="nothing is removed"):
        lab.down()
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious"]
