"""One libvirt host behind the `Hypervisor` protocol: puts the parts together and nothing else.

Must not import libvirt, decide, or remember anything of its own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from hostagent.accel import choose_domain_type
from hostagent.backups import Targets
from hostagent.commands import carry_out, follow, look_around, see, tell_facts
from hostagent.commands._host import Host
from hostagent.config import DEFAULT_HOOKS_DIR
from hostagent.hooks import Hooks
from hostagent.hypervisor import Inventory, Scope
from hostagent.images import ImageCache
from hostagent.layout import Layout
from hostagent.libvirt_status import QEMU_DIR
from hostagent.link import Link
from hostagent.passages import Passages
from hostagent.runs import Runs
from vmorch.core.hostcommands import Answer, Observed
from vmorch.core.ids import VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import HostFacts


class LibvirtHypervisor:
    """A host reached at a libvirt URI on the same machine. Nothing is asked of libvirt before the first call.

    `local_dir` and `shared_dir` hold images, disks and seeds; `fetch_base_url()` is the control plane's HTTP
    address, and `request_headers(path)` gives what identifies this host there. Other hosts' libvirt reaches this
    one's at `address` (its own name, if that is empty), with the certificates in `pki_dir`. `backups` are directories
    for backups by their names. What libvirt has in QEMU_DIR is seen in `qemu_dir`.
    """

    def __init__(
        self,
        uri: str,
        local_dir: Path,
        shared_dir: Path | None,
        default_network: str | None,
        accel: Literal["auto", "kvm", "tcg"],
        cluster: str,
        fetch_base_url: Callable[[], str],
        request_headers: Callable[[str], dict[str, str]],
        address: str = "",
        pki_dir: Path = Path("/var/lib/vmorch-agent/pki"),
        hooks_dir: Path = DEFAULT_HOOKS_DIR,
        backups: Mapping[str, Path] | None = None,
        qemu_dir: Path = QEMU_DIR,
    ) -> None:
        layout = Layout(local_dir.absolute(), shared_dir.absolute() if shared_dir is not None else None)
        self._host = Host(
            link=Link(uri),
            layout=layout,
            images=ImageCache(layout, fetch_base_url, request_headers),
            runs=Runs(layout),
            passages=Passages(),
            cluster=cluster,
            domain_type=choose_domain_type(accel, layout.root("local") / "accel.json"),
            default_network=default_network,
            address=address,
            pki_dir=pki_dir,
            qemu_dir=qemu_dir,
            hooks=Hooks(hooks_dir, layout.root("local") / "hooks"),
            targets=Targets(backups or {}),
        )

    def facts(self) -> HostFacts:
        return tell_facts(self._host)

    def execute(self, command: HostCommand, scope: Scope) -> Answer:
        return carry_out(self._host, command, scope)

    def resolve(self, command: HostCommand, scope: Scope) -> Answer:
        return follow(self._host, command, scope)

    def inventory(self) -> Inventory:
        return look_around(self._host)

    def observe(self, vm: VmId) -> Observed:
        return see(self._host, vm)

    def watch(self, changed: Callable[[VmId | None], None], lost: Callable[[], None]) -> None:
        self._host.link.watch(changed, lost)

    def reconnect(self) -> None:
        self._host.link.reconnect()

    def close(self) -> None:
        self._host.images.close()
        self._host.link.close()
