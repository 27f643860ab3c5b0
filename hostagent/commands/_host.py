"""What a command may use of its host."""

from dataclasses import dataclass, field
from pathlib import Path

from hostagent.backups import Targets
from hostagent.commands._aside import Call
from hostagent.domain_xml import DomainType
from hostagent.hooks import Hooks
from hostagent.images import ImageCache
from hostagent.layout import Layout
from hostagent.link import Link
from hostagent.passages import Passages
from hostagent.runs import Runs
from vmorch.core.ids import VmId


@dataclass(frozen=True, kw_only=True)
class Host:
    """One libvirt host as its agent holds it."""

    link: Link
    layout: Layout
    images: ImageCache
    runs: Runs
    passages: Passages
    cluster: str
    domain_type: DomainType
    default_network: str | None
    address: str
    """Where other hosts reach this one's libvirt; empty for the host's own name."""
    pki_dir: Path
    qemu_dir: Path
    """Where libvirt's own directories for domains that run are seen."""
    hooks: Hooks
    targets: Targets
    asking: dict[VmId, Call] = field(default_factory=dict)
    """Questions whose answer QEMU may owe for ever: each is asked once."""
