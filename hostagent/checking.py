"""What `vmorch-agent check` looks at before the agent is started. Must not change anything."""

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
from msgspec import Struct

from hostagent import identity as files
from hostagent.certificates import own_address, store_of
from hostagent.config import Config
from hostagent.credentials import expires
from hostagent.enrolment import EnrolmentError, http_client
from hostagent.hypervisor import Hypervisor, HypervisorLost
from hostagent.identity import Identity
from hostagent.pki import BadPki
from vmorch.bus import keys

TLS_PORT = 16514
_QEMU_MAY_READ = Path("/etc/pki/qemu")
"""What libvirt's AppArmor profile of QEMU lets it read."""


class Check(Struct, frozen=True):
    """One thing that was looked at."""

    subject: str
    ok: bool
    found: str


Reach = Callable[[Config, Identity, keys.KeyPair], Hypervisor]


def checks(config: Config, reach: Reach) -> Iterator[Check]:
    """Everything that is looked at, one after another. `reach` gives the hypervisor that `run` would use."""
    yield from _directories(config)
    try:
        identity = files.load_identity(config.state_dir)
    except files.NotEnrolled as error:
        yield Check("identity", False, str(error))
        return
    yield Check("identity", True, f"host {identity.name} of cluster {identity.cluster}")
    try:
        pair = keys.load(config.state_dir / files.KEY, "user")
    except (keys.BadKey, FileNotFoundError) as error:
        yield Check("host key", False, str(error))
        return
    ours = pair.public == identity.key
    yield Check("host key", ours, pair.public if ours else "not the key that enrolled")
    same = files.machine_id() == identity.machine_id
    yield Check("machine id", same, "as enrolled" if same else "not that of the machine that enrolled")
    yield _credentials(config)
    yield _server(identity)
    yield from _certificate(config)
    yield _libvirt(config, lambda: reach(config, identity, pair))


def _directories(config: Config) -> Iterator[Check]:
    wanted = {"state directory": config.agent.state_dir, "local storage": config.storage.local_dir}
    if config.storage.shared_dir:
        wanted["shared storage"] = config.storage.shared_dir
    wanted |= {f"backups {name}": directory for name, directory in config.backups.items()}
    for subject, name in wanted.items():
        usable = Path(name).is_dir() and os.access(name, os.W_OK | os.X_OK)
        yield Check(subject, usable, name if usable else f"{name} is no directory that can be written to")


def _credentials(config: Config) -> Check:
    try:
        credentials = files.load_credentials(config.state_dir)
    except files.NotEnrolled as error:
        return Check("bus credentials", False, str(error))
    age = os.stat(config.state_dir / files.CREDENTIALS).st_mtime
    lasting = expires(credentials) > age
    return Check("bus credentials", lasting, "present" if lasting else "expired before they were stored")


def _certificate(config: Config) -> Iterator[Check]:
    pki, now = config.pki_dir, datetime.now(UTC)
    try:
        held = store_of(config).held()
    except BadPki as error:
        yield Check("certificate", False, str(error))
        return
    if held is None:
        yield Check("certificate", False, f"{pki} holds none yet; the agent asks for one when it runs")
        return
    lasting = held.begins <= now < held.expires
    until = f"{', '.join(held.names)}, until {held.expires:%Y-%m-%d %H:%M} UTC"
    yield Check("certificate", lasting, until if lasting else f"not in force: {until}")
    if _confined() and not pki.absolute().is_relative_to(_QEMU_MAY_READ):
        hidden = f"AppArmor hides {pki} from QEMU: set pki_dir to a directory in {_QEMU_MAY_READ}"
        yield Check("certificate for QEMU", False, hidden)
    yield _tls(pki, own_address(config))


def _confined() -> bool:
    try:
        return Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
    except OSError:
        return False


def _tls(pki: Path, address: str) -> Check:
    """Come to this host's own libvirtd as another host would."""
    try:
        context = ssl.create_default_context(cafile=str(pki / "cacert.pem"))
        context.load_cert_chain(pki / "clientcert.pem", pki / "clientkey.pem")
        with (
            socket.create_connection((address, TLS_PORT), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=address) as line,
        ):
            # libvirtd judges us only after the handshake: a 1 if we are welcome
            welcome = line.recv(1) == b"\x01"
    except OSError as error:
        hint = "vmorch-agent setup-libvirt --write, and restart libvirtd"
        return Check("libvirt for other hosts", False, f"{address}:{TLS_PORT}: {error} ({hint})")
    found = "encrypted, and knows this host" if welcome else "refuses this host's certificate"
    return Check("libvirt for other hosts", welcome, f"{address}:{TLS_PORT}: {found}")


def _server(identity: Identity) -> Check:
    try:
        with http_client(identity.server_url) as client:
            status = client.get("/").status_code
    except (EnrolmentError, httpx2.TransportError) as error:
        return Check("control plane", False, f"{identity.server_url}: {error}")
    return Check("control plane", True, f"{identity.server_url} answers (status {status})")


def _libvirt(config: Config, hypervisor: Callable[[], Hypervisor]) -> Check:
    try:
        reached = hypervisor()
        facts = reached.facts()
        reached.close()
    except HypervisorLost as error:
        return Check("libvirt", False, f"{config.libvirt.uri}: {error}")
    version = f"libvirt {facts.libvirt}, QEMU {facts.qemu}, {facts.accel}"
    return Check("libvirt", True, f"{config.libvirt.uri}: {version}, {facts.cpus} CPUs, {facts.memory} MiB")
