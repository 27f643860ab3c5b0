"""The files that make a lab host a machine of its own: identity, libvirt's settings, the agent's settings.

Written when the host is first made; what the host changes later (domains, networks, keys) is its own and is kept
across power cuts. Must not start anything.
"""

import shutil
import uuid
from pathlib import Path

from deploy.lab import network
from deploy.lab.container import Plan

SHARED_DIR = "/srv/vmorch/shared"
LOCAL_DIR = "/srv/vmorch/local"
BACKUP_DIR = f"{SHARED_DIR}/backups"
AGENT_DIR = "/srv/vmorch/agent"
AGENT_CONFIG = f"{AGENT_DIR}/agent.toml"
NETWORK = "lab"

_IDENTITIES = uuid.UUID("5b1f4c55-7d7d-4f3b-9a53-0d6f3c0a11ab")

# emulation in a namespace: no cgroups, no AppArmor, no private mounts for each guest; the short keepalive lets a
# migration notice a pulled cable in seconds
_QEMU_CONF = """\
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
keepalive_interval = 1
keepalive_count = 3
"""

# with fewer requests for a connection a handful of slow calls makes every query wait
_LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
keepalive_interval = 2
keepalive_count = 3
max_client_requests = 50
log_outputs = "2:stderr"
"""

_NETWORK_XML = """\
<network>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <forward mode='bridge'/>
  <bridge name='{bridge}'/>
</network>
"""

_AGENT_CONF = """\
[agent]
state_dir = "{agent_dir}"
name = "{name}"

[libvirt]
uri = "qemu:///system"

[storage]
local_dir = "{local_dir}"
shared_dir = "{shared_dir}"

[network]
default = "{network}"

[hooks]
dir = "{agent_dir}/hooks"

[migration]
address = "{address}"

[backups]
main = "{backup_dir}"
"""


def host_uuid(lab: str, host: str) -> uuid.UUID:
    """The same for one name in one lab, different everywhere else."""
    return uuid.uuid5(_IDENTITIES, f"{lab}/{host}")


def hosts_file(names: list[str]) -> str:
    """Every host by name: migration asks the destination for its name and then looks it up."""
    lines = ["127.0.0.1 localhost", f"{network.CONTROL_ADDRESS} control"]
    lines += [f"{network.host_address(index)} {name}" for index, name in enumerate(names, start=1)]
    return "\n".join(lines) + "\n"


def prepare(directory: Path, lab: str, name: str, index: int) -> None:
    """Create the host's disk if it is new. /run is emptied, as at every boot."""
    for kept in ("lib", "cache", "log", "local", "agent", "pki"):
        (directory / kept).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / "run", ignore_errors=True)
    for volatile in ("lock", "libvirt"):
        (directory / "run" / volatile).mkdir(parents=True)
    identity = host_uuid(lab, name)
    (directory / "machine-id").write_text(f"{identity.hex}\n")
    settings = directory / "agent" / "agent.toml"
    if not settings.exists():
        settings.write_text(
            _AGENT_CONF.format(
                agent_dir=AGENT_DIR,
                name=name,
                local_dir=LOCAL_DIR,
                shared_dir=SHARED_DIR,
                network=NETWORK,
                backup_dir=BACKUP_DIR,
                address=network.host_address(index),
            )
        )
    if not (directory / "etc").exists():
        _write_libvirt_settings(directory / "etc", identity, index)


def _write_libvirt_settings(etc: Path, identity: uuid.UUID, index: int) -> None:
    draft = etc.with_name("etc.new")
    shutil.rmtree(draft, ignore_errors=True)
    networks = draft / "qemu" / "networks"
    (networks / "autostart").mkdir(parents=True)
    shutil.copytree("/etc/libvirt/nwfilter", draft / "nwfilter")
    (draft / "qemu.conf").write_text(_QEMU_CONF)
    (draft / "libvirt.conf").write_text("")
    (draft / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(uuid=identity, address=network.host_address(index)))
    (networks / f"{NETWORK}.xml").write_text(
        _NETWORK_XML.format(name=NETWORK, uuid=uuid.uuid5(identity, NETWORK), bridge=network.HOST_BRIDGE)
    )
    (networks / "autostart" / f"{NETWORK}.xml").symlink_to(f"/etc/libvirt/qemu/networks/{NETWORK}.xml")
    draft.rename(etc)


def plan(directory: Path, name: str, hosts: Path, shared: Path) -> Plan:
    """What the host's pid 1 mounts: its own disk over the machine's, everything else as the machine has it."""
    own = {
        "run": "/run",
        "etc": "/etc/libvirt",
        "lib": "/var/lib/libvirt",
        "cache": "/var/cache/libvirt",
        "log": "/var/log/libvirt",
        "pki": "/etc/pki",
        "machine-id": "/etc/machine-id",
        "local": LOCAL_DIR,
        "agent": AGENT_DIR,
    }
    return Plan(
        hostname=name,
        # disks belong to root alone, as they would under the production unit files
        umask="0077",
        binds=[
            *((str(directory / source), target) for source, target in own.items()),
            (str(shared), SHARED_DIR),
            (str(hosts), "/etc/hosts"),
        ],
        tmpfs=["/srv"],
        # most machines have no /etc/pki to cover
        grown=["/etc"],
        private_dev=True,
    )
