"""Guests travel encrypted between hosts that know each other, shown with libvirt's own tools on real hosts.

The guest here is libvirt's alone: what vmorch does with such a way is tested elsewhere.
"""

import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from deploy.lab import host_files, network
from deploy.lab.host import AGENT_ARGV, Host
from deploy.lab.process import kill_and_wait
from hostagent.pki import NAMES, Store
from tests.integration.lab_fixtures import Site, needs_guest, needs_lab, tiny_image, until
from vmorch.engine.authority import ensure_authority, read_request

PKI = f"{host_files.AGENT_DIR}/pki"
CANARY = "canary-7c1f9e2b4d"

GUEST = """
<domain type='qemu'>
  <name>traveller</name><memory unit='MiB'>96</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{format}'/><source file='{shared}/traveller.img'/><target dev='vda' bus='virtio'/>
    </disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='file'><source path='{shared}/traveller.log'/></serial>
  </devices>
</domain>
"""

# every frame between the hosts passes the control namespace's bridge
EAR = f"""
import signal, socket, sys
line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
line.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
line.settimeout(0.2)
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
print("listening", flush=True)
heard = seen = 0
while not told:
    try:
        frame = line.recv(1 << 17)
    except TimeoutError:
        continue
    heard += len(frame)
    seen += frame.count(b"{CANARY}")
print(heard >> 20, seen, flush=True)
"""

TLS = """
import socket, ssl, sys
address, name, pki = sys.argv[1:]
context = ssl.create_default_context(cafile=pki + "/cacert.pem")
context.load_cert_chain(pki + "/clientcert.pem", pki + "/clientkey.pem")
with socket.create_connection((address, 16514), 5) as plain, context.wrap_socket(plain, server_hostname=name) as line:
    print(line.getpeercert()["serialNumber"].lower().lstrip("0"), line.recv(1))
"""


VISITORS = """
import socket, ssl, sys
from threading import Thread
address, name, pki = sys.argv[1:]
context = ssl.create_default_context(cafile=pki + "/cacert.pem")
context.load_cert_chain(pki + "/clientcert.pem", pki + "/clientkey.pem")
def visit():
    while True:
        with socket.create_connection((address, 16514), 20) as plain:
            with context.wrap_socket(plain, server_hostname=name) as line:
                line.recv(1)
                print("came in", flush=True)
for _ in range(3):
    Thread(target=visit).start()
"""


RELOADS = f"""
from pathlib import Path
from hostagent.libvirtd_reload import reload_certificates
assert sum(reload_certificates(Path({PKI!r})) for _ in range(30)) > 20
"""


def pki_of(host: Host) -> Path:
    """A host's certificates as the machine sees them."""
    return host.directory / "agent/pki"


def virsh(host: Host, *arguments: str, check: bool = False) -> CompletedProcess[str]:
    return host.run(["virsh", "-c", "qemu:///system", *arguments], check=check, timeout=120)


def migrate(here: Host, there: Host, *options: str, uri: str | None = None) -> CompletedProcess[str]:
    """Send the guest away as an administrator would."""
    to = uri or f"qemu+tls://{there.name}/system?pkipath={PKI}"
    return virsh(here, "migrate", "--live", "--p2p", "--unsafe", *options, "traveller", to)


def comes_in(client: Host, server: str, pki: str = PKI) -> str:
    """Empty if libvirtd of `server` lets the client in with these certificates, else why not."""
    done = client.run(["virsh", "-c", f"qemu+tls://{server}/system?pkipath={pki}", "hostname"], check=False)
    return done.stderr.strip() if done.returncode else ""


# -- certificates -------------------------------------------------------------------------------------------------


class TestCertificates:
    pytestmark = needs_lab

    def test_every_host_has_one_from_its_enrolment_on(self, site: Site) -> None:
        for index, host in enumerate(site.lab.hosts, start=1):
            held = Store(pki_of(host)).held()
            assert held is not None
            assert held.names == (host.name, str(network.host_address(index)))
            shown = site.api.host(host.name)["certificate"]
            assert shown["fingerprint"] == held.fingerprint
            assert shown["names"] == list(held.names)
            assert held.expires - datetime.now(UTC) > timedelta(days=89)
            assert {name for name in NAMES if (pki_of(host) / name).exists()} == set(NAMES)
            key = (pki_of(host) / "server-key.pem").resolve()
            assert key.stat().st_mode & 0o077 == 0
            said = site.cli.run("host", "describe", host.name)
            assert f"Certificate  {host.name}, {network.host_address(index)}, expires in 89d" in said
            checked = host.run([*AGENT_ARGV[:3], "check", "--config", host_files.AGENT_CONFIG]).stdout
            assert "ok    libvirt for other hosts: " in checked

    def test_no_private_key_is_in_the_log_the_logs_or_a_command_line(self, site: Site) -> None:
        secrets = [(pki_of(host) / "server-key.pem").read_text().splitlines()[1] for host in site.lab.hosts]
        secrets.append((site.lab.directory / "server/keys/ca-key.pem").read_text().splitlines()[1])
        told = str(site.api.items("/v1/events")) + str([site.api.host(host.name) for host in site.lab.hosts])
        logs = [site.lab.control.directory / "control.log"]
        logs += [found for host in site.lab.hosts for found in (host.directory / "log").rglob("*") if found.is_file()]
        told += "".join(found.read_text(errors="replace") for found in logs)
        assert "host.certified" in told
        for secret in secrets:
            assert secret not in told

    def test_hosts_let_each_other_in_by_name_and_by_address(self, site: Site) -> None:
        first, second = site.lab.hosts[:2]
        for here, there in ((first, second), (second, first)):
            assert comes_in(here, there.name) == ""
            assert comes_in(here, str(there.address)) == ""

    def test_a_stranger_is_let_in_by_nobody_and_lets_nobody_fool_it(self, site: Site) -> None:
        first, second = site.lab.hosts[:2]
        stranger = first.directory / "agent/stranger"
        shutil.rmtree(stranger, ignore_errors=True)
        store, other = Store(stranger), ensure_authority(site.lab.directory / "stranger", "lab", datetime.now(UTC))
        draft = store.draft()
        wish = read_request(draft.request(first.name, (first.name, str(first.address))))
        _, pem = other.issue(wish, (first.name, str(first.address)), datetime.now(UTC))
        store.take(draft, pem, other.certificate, other.revoked((), 0, datetime.now(UTC)))
        inside = f"{host_files.AGENT_DIR}/stranger"
        # it does not know the host that it comes to
        assert "certificate" in comes_in(first, second.name, inside)
        # and with the right authority the host does not know it
        for name in ("ca-cert.pem", "cacert.pem", "ca-crl.pem", "cacrl.pem"):
            (stranger / name).unlink()
            shutil.copy(pki_of(first) / name, stranger / name)
        assert comes_in(first, second.name, inside)
        assert comes_in(first, second.name) == ""
        shutil.rmtree(stranger)

    def test_a_host_that_answers_to_another_one_s_name_is_found_out(self, site: Site) -> None:
        first, second = site.lab.hosts[:2]
        known = site.lab.directory / "hosts"
        before = known.read_text()
        # in place: a new file would not show through the bind mounts of running hosts
        known.write_text(f"{before}{second.address} hv-77\n")
        try:
            assert "hv-77" in comes_in(first, "hv-77")
        finally:
            known.write_text(before)

    def test_a_new_certificate_is_served_without_a_restart(self, site: Site) -> None:
        first, second = site.lab.hosts[:2]

        def served() -> list[str]:
            done = first.run([sys.executable, "-c", TLS, str(second.address), second.name, PKI], check=False)
            return done.stdout.split()

        before, libvirtd = served(), second.pids()["libvirtd"]
        assert before[1:] == ["b'\\x01'"]
        (pki_of(second) / "current").unlink()
        second.kill("agent")
        second.start("agent")
        after = until(lambda: [found for found in [served()] if found and found[0] != before[0]], 30, "a new one")[0]
        assert after == [site.api.host(second.name)["certificate"]["serial"], "b'\\x01'"]
        assert second.pids()["libvirtd"] == libvirtd
        site.connected()

    def test_libvirtd_outlives_new_certificates_while_others_come_and_go(self, site: Site) -> None:
        """Told at the wrong moment libvirtd 9.0 dies: without the agent's care it does here within seconds."""
        first, second = site.lab.hosts[:2]
        libvirtd = first.pids()["libvirtd"]
        visits = [sys.executable, "-c", VISITORS, str(first.address), first.name, PKI]
        second.container.start("visitors", visits, site.lab.directory / "visitors.log")
        try:
            first.run([sys.executable, "-c", RELOADS], timeout=120)
        finally:
            kill_and_wait(second.container.daemons()["visitors"], signal.SIGTERM)
        assert first.pids()["libvirtd"] == libvirtd
        limits = first.run(["virt-admin", "server-clients-info", "libvirtd"]).stdout
        assert re.search(r"^nclients_max +: 5000$", limits, re.MULTILINE)
        visits_made = len((site.lab.directory / "visitors.log").read_text().splitlines())
        assert visits_made > 50
        assert comes_in(second, first.name) == ""

    def test_a_host_that_was_enrolled_anew_cannot_come_in_with_what_it_had(self, site: Site) -> None:
        first, second = site.lab.hosts[:2]
        old = first.directory / "agent/stolen"
        shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(pki_of(second), old)
        stolen = f"{host_files.AGENT_DIR}/stolen"
        assert comes_in(first, first.name, stolen) == ""
        second.kill("agent")
        until(lambda: site.api.host(second.name)["agent"] == "unreachable", 60, "silence of the host")
        token = site.lab.control.register_host(second.name)
        enroll = [*AGENT_ARGV[:3], "enroll", f"http://{network.CONTROL_ADDRESS}:8650", "--force"]
        second.run([*enroll, "--token-file", "-", "--config", host_files.AGENT_CONFIG], text=token)
        second.start("agent")
        # agents ask once a minute; one that starts asks at once
        first.kill("agent")
        first.start("agent")
        until(lambda: comes_in(first, first.name, stolen) != "", 30, "the revocation")
        until(lambda: comes_in(first, second.name) == "", 30, "the new certificate")
        assert comes_in(second, first.name) == ""
        shutil.rmtree(old)
        site.connected()


# -- a guest on its way -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traveller(lab_site: Site) -> Iterator[Host]:
    """A real guest on hv-01 whose memory holds the canary; ended wherever it is then."""
    lab_site.clean()
    first = lab_site.lab.hosts[0]
    image, _ = tiny_image()
    shutil.copy(image, first.shared / "traveller.img")
    form = "qcow2" if image.read_bytes()[:4] == b"QFI\xfb" else "raw"
    (first.shared / "traveller.xml").write_text(GUEST.format(format=form, shared=host_files.SHARED_DIR))
    virsh(first, "create", f"{host_files.SHARED_DIR}/traveller.xml", check=True)
    try:
        ping = ("qemu-agent-command", "traveller", '{"execute":"guest-ping"}')
        until(lambda: virsh(first, *ping).returncode == 0, 120, "the guest's agent")
        # doubled, since a loop of that many lines takes an emulated processor too long
        double = "cat /canary /canary > /twice && mv /twice /canary"
        fill = f"echo {CANARY} > /canary; for each in $(seq 16); do {double}; done"
        lab_site.in_guest(first.name, "traveller", "/bin/busybox", "sh", "-c", fill)
        yield first
    finally:
        for host in lab_site.lab.hosts:
            virsh(host, "destroy", "traveller")
        for leftover in first.shared.glob("traveller.*"):
            leftover.unlink()


class TestTheWay:
    pytestmark = needs_guest

    @staticmethod
    def overheard(site: Site, way: Callable[[], CompletedProcess[str]]) -> tuple[int, int]:
        """MiB that passed between the hosts meanwhile, and how often the canary was in them."""
        container, log = site.lab.control.container, site.lab.directory / "ear.log"
        log.unlink(missing_ok=True)
        container.start("ear", [sys.executable, "-c", EAR], log)
        until(lambda: "listening" in log.read_text(), 20, "somebody who listens")
        try:
            done = way()
            assert done.returncode == 0, done.stderr
        finally:
            kill_and_wait(container.daemons()["ear"], signal.SIGTERM)
        heard, seen = log.read_text().split()[1:]
        return int(heard), int(seen)

    def test_a_running_guest_travels_and_nobody_on_the_way_can_read_it(self, lab_site: Site, traveller: Host) -> None:
        first, second = lab_site.lab.hosts[:2]
        # to show that what listens can hear, once in clear; this lab's hosts allow it
        heard, seen = self.overheard(lab_site, lambda: migrate(first, second, uri=f"qemu+tcp://{second.name}/system"))
        assert heard > 20
        assert seen > 1000
        heard, seen = self.overheard(lab_site, lambda: migrate(second, first, "--tls"))
        assert heard > 20
        assert seen == 0
        assert lab_site.domains(first.name) == {"traveller": True}
        assert lab_site.domains(second.name) == {}
        # the guest itself did not notice
        assert CANARY in lab_site.in_guest(first.name, "traveller", "/bin/busybox", "head", "-n1", "/canary")

    def test_it_stays_where_it_is_when_the_other_end_is_somebody_else(self, lab_site: Site, traveller: Host) -> None:
        first, second = lab_site.lab.hosts[:2]
        refused = migrate(first, second, "--tls", "--tls-destination", "hv-77")
        assert refused.returncode != 0
        assert lab_site.domains(second.name) == {}
        assert virsh(first, "domstate", "traveller", check=True).stdout.strip() == "running"

    def test_a_host_that_was_told_so_sends_no_guest_in_clear(self, lab_site: Site, traveller: Host) -> None:
        first, second = lab_site.lab.hosts[:2]
        setup = [*AGENT_ARGV[:3], "setup-libvirt", "--write", "--config", host_files.AGENT_CONFIG]
        first.run(setup)
        first.kill("libvirtd", signal.SIGTERM)
        first.start("libvirtd")
        try:
            refused = migrate(first, second, uri=f"qemu+tcp://{second.name}/system")
            assert refused.returncode != 0
            assert "TLS" in refused.stderr
            assert migrate(first, second, "--tls").returncode == 0
            assert migrate(second, first, "--tls").returncode == 0
        finally:
            first.encrypt()
            lab_site.connected()
