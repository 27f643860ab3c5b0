"""Carry along what libvirt leaves behind when a guest moves: what it knows of its snapshots and checkpoints.

libvirt moves no domain of which it knows snapshots, and forgets a moved one's checkpoints. So their descriptions are
put into the domain's own metadata, which travels with it in the same stroke and survives every crash on the way, and
are taken out again at the end where the guest is. The data itself is in the disks.
"""

import base64
import zlib
from typing import Any

import libvirt
import msgspec
from lxml import etree

from vmorch.core.errors import Rejected

NAMESPACE = "urn:vmorch:luggage:1"
_KEY = "luggage"
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)
_SNAPSHOT_KINDS = libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL
_CHECKPOINT_KINDS = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL


class Luggage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """libvirt's descriptions by name, parents first, and which snapshot is the current one."""

    snapshots: dict[str, str] = {}
    checkpoints: dict[str, str] = {}
    current: str = ""


def pack(domain: Any) -> None:
    """libvirt knows no snapshot of the domain any more, and the domain itself holds what it knew. Safe to repeat."""
    snapshots = domain.listAllSnapshots(_SNAPSHOT_KINDS)
    checkpoints = domain.listAllCheckpoints(_CHECKPOINT_KINDS)
    if not snapshots and not checkpoints:
        return
    before = _held(domain) or Luggage()
    current = next((each.getName() for each in snapshots if each.isCurrent()), before.current)
    luggage = Luggage(
        snapshots={**before.snapshots, **{each.getName(): _described(each) for each in snapshots}},
        checkpoints={**before.checkpoints, **{each.getName(): _described(each) for each in checkpoints}},
        current=current,
    )
    _hold(domain, luggage)
    for each in reversed(snapshots):
        each.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


def unpack(domain: Any) -> None:
    """libvirt knows again what the domain holds of it. Safe to repeat."""
    luggage = _held(domain)
    if luggage is None:
        return
    known = {each.getName() for each in domain.listAllSnapshots()}
    for name, xml in luggage.snapshots.items():
        if name not in known:
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT if name == luggage.current else 0
            domain.snapshotCreateXML(xml, flags)
    known = {each.getName() for each in domain.listAllCheckpoints()}
    for name, xml in luggage.checkpoints.items():
        if name not in known:
            domain.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
    _hold(domain, None)


def is_unpacked(domain: Any) -> bool:
    """Whether the domain holds nothing any more."""
    return _held(domain) is None


def _described(each: Any) -> str:
    return str(each.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE))


def _held(domain: Any) -> Luggage | None:
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    try:
        packed = base64.b64decode(etree.fromstring(text.encode(), _PARSER).text or "", validate=True)
        return msgspec.json.decode(zlib.decompress(packed), type=Luggage)
    except (etree.XMLSyntaxError, ValueError, zlib.error, msgspec.MsgspecError) as error:
        raise Rejected("libvirt-refused", f"what the domain says of its snapshots is damaged: {error}") from error


def _hold(domain: Any, luggage: Luggage | None) -> None:
    text = None
    if luggage is not None:
        element = etree.Element(_KEY)
        element.text = base64.b64encode(zlib.compress(msgspec.json.encode(luggage))).decode()
        text = etree.tostring(element, encoding="unicode")
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    flags = live | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, _KEY, NAMESPACE, flags)
