"""A VM's definition as libvirt's domain XML, and back to the figures that matter in it.

The same definition gives the same bytes: libvirt numbers devices by their order, so a guest keeps its addresses
over every redefinition. Built as a tree, never as text. Must not call libvirt or look at the host.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from lxml import etree
from lxml.etree import _Element
from msgspec import Struct

from vmorch.core.errors import Rejected
from vmorch.core.ids import VmId
from vmorch.core.spec import NicSpec, VmSpec

NAMESPACE = "urn:vmorch:domain:1"
"""Of the element that says that a domain is ours."""
DomainType = Literal["kvm", "qemu"]

_MARKER = f"{{{NAMESPACE}}}vm"
NEWEST = "q35"
"""The machine type that stands for the newest which a host has."""
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
    machine: str = NEWEST
    """A versioned machine type once libvirt has chosen one: a guest must not find another board after an update."""


class Marker(Struct, frozen=True):
    """What a domain of ours says of itself: whose it is, the digest of its definition, and its figures then."""

    cluster: str
    digest: str
    figures: dict[str, str]


class Told:
    """A domain's XML as libvirt told it, parsed once. Of what it does not say, or if it cannot be read, there is
    nothing."""

    def __init__(self, xml: str) -> None:
        found = _parse(xml)
        self._root = etree.Element("domain") if found is None else found

    @property
    def active(self) -> bool:
        """Whether the domain had a QEMU then."""
        return self._root.get("id") is not None

    @property
    def marker(self) -> Marker | None:
        """What it says of itself if it is a domain of some cluster's."""
        found = self._root.find(f"metadata/{_MARKER}")
        return None if found is None else _marker(found)

    @property
    def machine(self) -> str:
        """Its machine type; without one, the newest that the host has."""
        kind = self._root.find("os/type")
        return NEWEST if kind is None else kind.get("machine", NEWEST)

    @property
    def figures(self) -> dict[str, str]:
        """What of its configuration can drift: field -> value, as `build` would have it."""
        return _figures(self._root) if len(self._root) else {}

    @property
    def disks(self) -> dict[str, str]:
        """The files that it writes to, by the names of its disks."""
        return {name: files[0] if files else "" for name, files in self.chains.items()}

    @property
    def chains(self) -> dict[str, tuple[str, ...]]:
        """The files of each disk that it writes to, topmost first, as far as libvirt tells them."""
        return {_target(each): tuple(_files(each)) for each in self._disks() if each.find("readonly") is None}

    @property
    def aliases(self) -> dict[str, str]:
        """By which name QEMU knows each disk of it, if it is active."""
        found = ((_target(each), each.find("alias")) for each in self._disks())
        return {name: "" if alias is None else alias.get("name", "") for name, alias in found}

    @property
    def host_devices(self) -> tuple[str, ...]:
        """What it holds of its host, such as `pci 0000:3b:00.0`, which cannot leave with it. vmorch gives a domain
        none, but whoever does it by hand shall hear of it before the guest moves."""
        lent = self._root.iterfind("devices/interface[@type='hostdev']")
        return tuple(_host_device(each) for each in [*self._root.iterfind("devices/hostdev"), *lent])

    def _disks(self) -> Iterator[_Element]:
        return self._root.iterfind("devices/disk")


def build(definition: Definition) -> str:
    """The domain XML. Raises Rejected `no-network` or `bad-spec`."""
    body = _domain(definition)
    marker = etree.Element(_MARKER, nsmap={"vmorch": NAMESPACE})
    marker.set("cluster", definition.cluster)
    marker.set("definition", digest(definition))
    for name, value in _figures(body).items():
        figure = etree.SubElement(marker, f"{{{NAMESPACE}}}figure")
        figure.set("name", name)
        figure.set("value", value)
    body.insert(2, _tag("title", f"vmorch {definition.cluster}"))
    body.insert(3, _tag("metadata", marker))
    return etree.tostring(body, pretty_print=True, encoding="unicode")


def digest(definition: Definition) -> str:
    """SHA-256 of the definition, apart from the machine type that libvirt chose for it."""
    text = etree.tostring(_domain(definition, machine=NEWEST), encoding="utf-8")
    return hashlib.sha256(text).hexdigest()


def read_marker(metadata: str) -> Marker | None:
    """The marker in the metadata element of our namespace, None if it is not one. libvirt hands such an element
    out without its namespace."""
    found = _parse(metadata)
    if found is None or etree.QName(found).localname != "vm":
        return None
    return _marker(found)


def disk_device(name: str, path: Path) -> str:
    """A disk as it is plugged into a domain that is on, or told when it shall be unplugged."""
    return etree.tostring(_disk(name, path, first=False), encoding="unicode")


def with_disks(xml: str, files: Mapping[str, Path]) -> str:
    """The domain's XML with these disks on these files; what they stand on is left to be found. Raises Rejected
    `memory-damaged` if it is no domain's XML."""
    found = _parse(xml)
    if found is None:
        raise Rejected("memory-damaged", "the kept memory has no readable configuration")
    for disk in found.iterfind("devices/disk"):
        file = files.get(_target(disk))
        if file is None:
            continue
        for below in disk.findall("backingStore"):
            disk.remove(below)
        source = disk.find("source")
        if source is not None:
            disk.replace(source, _tag("source", file=str(file)))
    return etree.tostring(found, encoding="unicode")


def _marker(element: _Element) -> Marker:
    figures = {str(each.get("name")): str(each.get("value")) for each in element}
    return Marker(element.get("cluster", ""), element.get("definition", ""), figures)


def _target(disk: _Element) -> str:
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def _files(disk: _Element) -> Iterator[str]:
    level: _Element | None = disk
    while level is not None:
        source = level.find("source")
        if source is None:
            return
        yield source.get("file", "")
        level = level.find("backingStore")


def _host_device(held: _Element) -> str:
    kind = held.get("type", "device") if held.tag == "hostdev" else "pci"
    address = held.find("source/address")
    if address is None:
        return kind
    at = {str(name): address.get(name, "").removeprefix("0x") for name in sorted(address.keys())}
    if "slot" in at:
        return f"{kind} {at.get('domain', '0000')}:{at.get('bus', '00')}:{at['slot']}.{at.get('function', '0')}"
    return f"{kind} " + " ".join(f"{name} {value}" for name, value in at.items())


def _tag(tag: str, /, *content: str | _Element, **attributes: str) -> _Element:
    """An element with a text or with elements inside."""
    element = etree.Element(tag)
    for key, value in attributes.items():
        element.set(key, value)
    for each in content:
        if isinstance(each, str):
            element.text = each
        else:
            element.append(each)
    return element


def _domain(definition: Definition, machine: str | None = None) -> _Element:
    spec = definition.spec
    return _tag(
        "domain",
        _tag("name", definition.vm),
        _tag("uuid", definition.vm),
        _tag("memory", str(spec.max_memory), unit="MiB"),
        _tag("currentMemory", str(spec.memory), unit="MiB"),
        _tag("vcpu", str(spec.max_vcpus), placement="static", current=str(spec.vcpus)),
        _tag("os", _tag("type", "hvm", arch="x86_64", machine=machine or definition.machine)),
        _features(definition.domain_type),
        _cpu(definition.domain_type),
        _clock(definition.domain_type),
        _tag("on_poweroff", "destroy"),
        _tag("on_reboot", "restart"),
        _tag("on_crash", "destroy"),
        _tag("devices", *_devices(definition)),
        type=definition.domain_type,
    )


def _features(kind: DomainType) -> _Element:
    features = _tag("features", _tag("acpi"), _tag("apic"))
    if kind == "qemu":
        features.append(_tag("tcg", _tag("tb-cache", str(_TRANSLATION_CACHE_MIB), unit="MiB")))
    return features


def _cpu(kind: DomainType) -> _Element:
    if kind == "kvm":
        return _tag("cpu", mode="host-passthrough", check="none", migratable="on")
    return _tag("cpu", _tag("model", "qemu64", fallback="forbid"), mode="custom", match="exact", check="none")


def _clock(kind: DomainType) -> _Element:
    clock = _tag("clock", offset="utc")
    if kind == "kvm":
        clock.append(_tag("timer", name="rtc", tickpolicy="catchup"))
        clock.append(_tag("timer", name="pit", tickpolicy="delay"))
        # under emulation guests fall back on the HPET when the I/O APIC's timer is late
        clock.append(_tag("timer", name="hpet", present="no"))
    return clock


def _devices(definition: Definition) -> Iterator[_Element]:
    spec = definition.spec
    cards = len(definition.disks) + (definition.seed is not None) + len(spec.nics)
    yield _tag("controller", type="usb", model="none")
    yield _tag("controller", type="pci", index="0", model="pcie-root")
    # a q35 board grows no port while it runs, so what is plugged in later needs one now
    for index in range(cards + _FIXED_PORTS + _SPARE_PORTS):
        yield _tag("controller", type="pci", index=str(index + 1), model="pcie-root-port")
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
    yield _tag("rng", _tag("backend", "/dev/urandom", model="random"), model="virtio")
    yield _tag("panic", model="isa")


def _disk(name: str, path: Path, *, first: bool) -> _Element:
    driver = {"name": "qemu", "type": "qcow2", "cache": "none", "discard": "unmap", "error_policy": "enospace"}
    disk = _tag(
        "disk",
        _tag("driver", **driver),
        _tag("source", file=str(path)),
        _tag("target", dev=name, bus="virtio"),
        _tag("serial", name),
        type="file",
        device="disk",
    )
    if first:
        disk.append(_tag("boot", order="1"))
    return disk


def _seed(path: Path) -> _Element:
    # a virtio disk, not a CD: kernels made for clouds often have no driver for a SATA drive
    return _tag(
        "disk",
        _tag("driver", name="qemu", type="raw"),
        _tag("source", file=str(path)),
        _tag("target", dev=_SEED_TARGET, bus="virtio"),
        _tag("readonly"),
        _tag("serial", "seed"),
        type="file",
        device="disk",
    )


def _nic(nic: NicSpec, default_network: str | None) -> _Element:
    network = nic.network or default_network
    if network is None:
        raise Rejected("no-network", f"card {nic.mac} names no network and this host has no default one")
    return _tag(
        "interface",
        _tag("mac", address=nic.mac),
        _tag("source", network=network),
        _tag("model", type="virtio"),
        type="network",
    )


def _serial(log: Path) -> _Element:
    return _tag("serial", _tag("source", path=str(log), append="on"), _tag("target", port="0"), type="file")


def _agent_channel() -> _Element:
    return _tag("channel", _tag("target", type="virtio", name="org.qemu.guest_agent.0"), type="unix")


def _balloon() -> _Element:
    return _tag("memballoon", _tag("stats", period="2"), model="virtio")


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
