"""What `vmorch-agent check` looks at before the agent is started. Must not change anything."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
from msgspec import Struct

from hostagent import identity as files
from hostagent.config import Config
from hostagent.credentials import expires
from hostagent.enrolment import EnrolmentError, http_client
from hostagent.hypervisor import Hypervisor, HypervisorLost
from hostagent.identity import Identity
from vmorch.bus import keys


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
    yield _libvirt(config, lambda: reach(config, identity, pair))


def _directories(config: Config) -> Iterator[Check]:
    wanted = {"state directory": config.agent.state_dir, "local storage": config.storage.local_dir}
    if config.storage.shared_dir:
        wanted["shared storage"] = config.storage.shared_dir
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
