"""A VM's definition as libvirt's domain XML, and back to the figures that matter in it.

The same definition gives the same bytes: libvirt numbers devices by their order, so a guest keeps its addresses
over every redefinition. Built as a tree, never as text. Must not call libvirt or look at the host.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lxml import etree
from lxml.builder import E, ElementMaker
from lxml.etree import _Element
from msgspec import Struct

from vmorch.core.errors import Rejected
from vmorch.core.ids import VmId
from vmorch.core.spec import NicSpec, VmSpec

NAMESPACE = "urn:vmorch:domain:1"
"""Of the element that says that a domain is ours."""
DomainType = Literal["kvm", "qemu"]

_OURS = ElementMaker(namespace=NAMESPACE, nsmap={"vmorch": NAMESPACE})
_ALIAS = "q35"
_SEED_TARGET = "vdz"
_SPARE_PORTS = 4
_FIXED_PORTS = 3
"""Agent channel, balloon and random numbers each take one."""
_TRANSLATION_CACHE_MIB = 32
"""QEMU's default takes a fifth of a small host's memory for each emulated guest."""
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)


class Definition(Struct, frozen=True, kw_only=True):
    """Everything that a domain's persistent configuration follows from."""

    vm: VmId
    spec: VmSpec
    cluster: str
    domain_type: DomainType
    disks: tuple[tuple[str, Path], ...]
    seed: Path | None
    serial_log: Path
    default_network: str | None
    machine: str = _ALIAS
    """A versioned machine type once libvirt has chosen one: a guest must not find another board after an update."""


class Marker(Struct, frozen=True):
    """What a domain of ours says of itself: whose it is, the digest of its definition, and its figures then."""

    cluster: str
    digest: str
    figures: dict[str, str]


def build(definition: Definition) -> str:
    """The domain XML. Raises Rejected `no-network` or `bad-spec`."""
    body = _domain(definition)
    marker = _OURS.vm(
        *(_OURS.figure(name=name, value=value) for name, value in _figures(body).items()),
        cluster=definition.cluster,
        definition=digest(definition),
    )
    body.insert(2, E.title(f"vmorch {definition.cluster}"))
    body.insert(3, E.metadata(marker))
    return etree.tostring(body, pretty_print=True, encoding="unicode")


def digest(definition: Definition) -> str:
    """SHA-256 of the definition, apart from the machine type that libvirt chose for it."""
    text = etree.tostring(_domain(definition, machine=_ALIAS), encoding="utf-8")
    return hashlib.sha256(text).hexdigest()


def read_marker(metadata: str) -> Marker | None:
    """The marker in a domain's metadata element, None if it is not one of ours."""
    found = _parse(metadata)
    if found is None or found.tag != f"{{{NAMESPACE}}}vm":
        return None
    figures = {str(each.get("name")): str(each.get("value")) for each in found}
    return Marker(found.get("cluster", ""), found.get("definition", ""), figures)


def read_figures(xml: str) -> dict[str, str]:
    """What of a domain's configuration can drift: field -> value, as `build` would have it."""
    found = _parse(xml)
    return {} if found is None else _figures(found)


def read_machine(xml: str) -> str:
    """The machine type in a domain's configuration."""
    found = _parse(xml)
    kind = None if found is None else found.find("os/type")
    return _ALIAS if kind is None else kind.get("machine", _ALIAS)


def _domain(definition: Definition, machine: str | None = None) -> _Element:
    spec = definition.spec
    return E.domain(
        E.name(definition.vm),
        E.uuid(definition.vm),
        E.memory(str(spec.max_memory), unit="MiB"),
        E.currentMemory(str(spec.memory), unit="MiB"),
        E.vcpu(str(spec.max_vcpus), placement="static", current=str(spec.vcpus)),
        E.os(E.type("hvm", arch="x86_64", machine=machine or definition.machine)),
        _features(definition.domain_type),
        _cpu(definition.domain_type),
        _clock(definition.domain_type),
        E.on_poweroff("destroy"),
        E.on_reboot("restart"),
        E.on_crash("destroy"),
        E.devices(*_devices(definition)),
        type=definition.domain_type,
    )


def _features(kind: DomainType) -> _Element:
    features = E.features(E.acpi(), E.apic())
    if kind == "qemu":
        features.append(E.tcg(E("tb-cache", str(_TRANSLATION_CACHE_MIB), unit="MiB")))
    return features


def _cpu(kind: DomainType) -> _Element:
    if kind == "kvm":
        return E.cpu(mode="host-passthrough", check="none", migratable="on")
    return E.cpu(E.model("qemu64", fallback="forbid"), mode="custom", match="exact", check="none")


def _clock(kind: DomainType) -> _Element:
    clock = E.clock(offset="utc")
    if kind == "kvm":
        clock.append(E.timer(name="rtc", tickpolicy="catchup"))
        clock.append(E.timer(name="pit", tickpolicy="delay"))
        # under emulation guests fall back on the HPET when the I/O APIC's timer is late
        clock.append(E.timer(name="hpet", present="no"))
    return clock


def _devices(definition: Definition) -> Iterator[_Element]:
    spec = definition.spec
    cards = len(definition.disks) + (definition.seed is not None) + len(spec.nics)
    yield E.controller(type="usb", model="none")
    yield E.controller(type="pci", index="0", model="pcie-root")
    # a q35 board grows no port while it runs, so what is plugged in later needs one now
    for index in range(cards + _FIXED_PORTS + _SPARE_PORTS):
        yield E.controller(type="pci", index=str(index + 1), model="pcie-root-port")
    for order, (name, path) in enumerate(definition.disks):
        yield _disk(name, path, first=order == 0)
    if definition.seed is not None:
        if any(name == _SEED_TARGET for name, _ in definition.disks):
            raise Rejected("bad-spec", f"{_SEED_TARGET} is kept for the seed")
        yield _seed(definition.seed)
    for nic in spec.nics:
        yield _nic(nic, definition.default_network)
    yield _serial(definition.serial_log)
    yield _agent_channel()
    yield _balloon()
    yield E.rng(E.backend("/dev/urandom", model="random"), model="virtio")
    yield E.panic(model="isa")


def _disk(name: str, path: Path, *, first: bool) -> _Element:
    driver = {"name": "qemu", "type": "qcow2", "cache": "none", "discard": "unmap", "error_policy": "enospace"}
    disk = E.disk(
        E.driver(**driver),
        E.source(file=str(path)),
        E.target(dev=name, bus="virtio"),
        E.serial(name),
        type="file",
        device="disk",
    )
    if first:
        disk.append(E.boot(order="1"))
    return disk


def _seed(path: Path) -> _Element:
    # a virtio disk, not a CD: kernels made for clouds often have no driver for a SATA drive
    return E.disk(
        E.driver(name="qemu", type="raw"),
        E.source(file=str(path)),
        E.target(dev=_SEED_TARGET, bus="virtio"),
        E.readonly(),
        E.serial("seed"),
        type="file",
        device="disk",
    )


def _nic(nic: NicSpec, default_network: str | None) -> _Element:
    network = nic.network or default_network
    if network is None:
        raise Rejected("no-network", f"card {nic.mac} names no network and this host has no default one")
    return E.interface(
        E.mac(address=nic.mac), E.source(network=network), E.model(type="virtio"), type="network"
    )


def _serial(log: Path) -> _Element:
    return E.serial(E.source(path=str(log), append="on"), E.target(port="0"), type="file")


def _agent_channel() -> _Element:
    return E.channel(E.target(type="virtio", name="org.qemu.guest_agent.0"), type="unix")


def _balloon() -> _Element:
    return E.memballoon(E.stats(period="2"), model="virtio")


def _figures(domain: _Element) -> dict[str, str]:
    vcpu = domain.find("vcpu")
    most = "" if vcpu is None else (vcpu.text or "").strip()
    return {
        "type": domain.get("type", ""),
        "vcpus": most if vcpu is None else vcpu.get("current", most),
        "max_vcpus": most,
        "memory": _mib(domain.find("currentMemory")),
        "max_memory": _mib(domain.find("memory")),
        "cpu": _cpu_figure(domain.find("cpu")),
        "disks": " ".join(_disk_figure(each) for each in domain.iterfind("devices/disk")),
        "nics": " ".join(_nic_figure(each) for each in domain.iterfind("devices/interface")),
    }


_KIB_PER_UNIT = {"KiB": 1, "MiB": 1024, "GiB": 1024 * 1024}


def _mib(element: _Element | None) -> str:
    if element is None:
        return ""
    unit = element.get("unit", "KiB")
    text = (element.text or "").strip()
    if unit not in _KIB_PER_UNIT or not text.isdigit():
        return f"{text} {unit}"
    mib, rest = divmod(int(text) * _KIB_PER_UNIT[unit], 1024)
    return str(mib) if not rest else f"{mib * 1024 + rest} KiB"


def _cpu_figure(cpu: _Element | None) -> str:
    if cpu is None:
        return ""
    return " ".join(filter(None, (cpu.get("mode"), cpu.findtext("model"))))


def _disk_figure(disk: _Element) -> str:
    source, target = disk.find("source"), disk.find("target")
    file = "" if source is None else source.get("file", "")
    return f"{'' if target is None else target.get('dev', '')}={file}"


def _nic_figure(nic: _Element) -> str:
    mac, source = nic.find("mac"), nic.find("source")
    network = "" if source is None else source.get("network", "")
    return f"{'' if mac is None else mac.get('address', '')}@{network}"


def _parse(text: str) -> _Element | None:
    try:
        return etree.fromstring(text.encode(), _PARSER)
    except etree.XMLSyntaxError:
        return None
