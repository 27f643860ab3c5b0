"""What a command may use of its host."""

from dataclasses import dataclass

from hostagent.domain_xml import DomainType
from hostagent.images import ImageCache
from hostagent.layout import Layout
from hostagent.link import Link
from hostagent.runs import Runs


@dataclass(frozen=True, kw_only=True)
class Host:
    """One libvirt host as its agent holds it."""

    link: Link
    layout: Layout
    images: ImageCache
    runs: Runs
    cluster: str
    domain_type: DomainType
    default_network: str | None
