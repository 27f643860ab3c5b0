"""A definition becomes the same domain XML every time, and what matters of it can be read back."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from hostagent.domain_xml import Definition, Told, build, digest, read_marker
from vmorch.core.errors import Rejected
from vmorch.core.ids import GiB, MiB, VmId
from vmorch.core.spec import DiskSpec, NicSpec, SeedSpec, VmSpec

GOLDEN = Path(__file__).parent.parent / "golden"
VM = VmId("0192f0c1-5b6a-7c3d-8e4f-0123456789ab")
HOME = Path("/var/lib/vmorch-agent/vmorch/vms") / VM

SMALL = Definition(
    vm=VM,
    spec=VmSpec(
        vcpus=1,
        max_vcpus=1,
        memory=MiB(256),
        max_memory=MiB(256),
        disks=(DiskSpec(name="vda", size=GiB(1)),),
    ),
    cluster="lab",
    domain_type="kvm",
    disks=(("vda", HOME / "vda.qcow2"),),
    seed=None,
    serial_log=HOME / "serial.log",
    default_network=None,
)
FULL = replace(
    SMALL,
    domain_type="qemu",
    spec=VmSpec(
        vcpus=2,
        max_vcpus=4,
        memory=MiB(512),
        max_memory=MiB(1024),
        disks=(DiskSpec(name="vda", size=GiB(1)), DiskSpec(name="vdb", size=GiB(2), storage="shared")),
        nics=(NicSpec(mac="52:54:00:aa:bb:cc"), NicSpec(mac="52:54:00:aa:bb:cd", network="storage")),
        seed=SeedSpec(hostname="web"),
    ),
    disks=(("vda", HOME / "vda.qcow2"), ("vdb", Path("/srv/shared/vmorch/vms") / VM / "vdb.qcow2")),
    seed=HOME / "seed.iso",
    default_network="default",
    machine="pc-q35-7.2",
)


@pytest.mark.parametrize(("name", "definition"), [("domain-small", SMALL), ("domain-full", FULL)])
def test_a_definition_gives_the_golden_xml(name: str, definition: Definition) -> None:
    assert build(definition) == (GOLDEN / f"{name}.xml").read_text()


def test_what_a_domain_says_of_itself_can_be_read_back() -> None:
    xml = build(FULL)
    start, end = xml.index("<vmorch:vm"), xml.index("</vmorch:vm>") + len("</vmorch:vm>")
    marker = read_marker(xml[start:end])
    assert marker is not None
    assert (marker.cluster, marker.digest, marker.figures) == ("lab", digest(FULL), Told(xml).figures)


def test_the_figures_are_those_of_the_definition() -> None:
    assert Told(build(FULL)).figures == {
        "type": "qemu",
        "vcpus": "2",
        "max_vcpus": "4",
        "memory": "512",
        "max_memory": "1024",
        "cpu": "custom qemu64",
        "disks": f"vda={HOME}/vda.qcow2 vdb=/srv/shared/vmorch/vms/{VM}/vdb.qcow2 vdz={HOME}/seed.iso",
        "nics": "52:54:00:aa:bb:cc@default 52:54:00:aa:bb:cd@storage",
    }


def test_libvirts_own_notation_gives_the_same_figures() -> None:
    xml = build(SMALL).replace('<memory unit="MiB">256<', '<memory unit="KiB">262144<')
    assert Told(xml.replace(' current="1"', "")).figures == Told(build(SMALL)).figures


def test_the_chosen_machine_type_is_kept_and_is_no_part_of_the_definition() -> None:
    assert Told(build(FULL)).machine == "pc-q35-7.2"
    assert Told("").machine == "q35"
    assert digest(FULL) == digest(replace(FULL, machine="pc-q35-9.0"))
    assert digest(FULL) != digest(SMALL)


def test_devices_of_the_host_in_a_domain_are_named_as_lspci_and_lsusb_do() -> None:
    pci = "<source><address domain='0x0000' bus='0x3b' slot='0x00' function='0x1'/></source>"
    usb = "<source><address bus='1' device='4'/></source>"
    held = (
        f"<hostdev mode='subsystem' type='pci'>{pci}</hostdev><hostdev mode='subsystem' type='usb'>{usb}</hostdev>"
        f"<interface type='hostdev'>{pci}</interface><hostdev mode='subsystem' type='usb'/>"
    )
    xml = build(FULL)
    assert Told(xml).host_devices == ()
    theirs = xml.replace("</devices>", f"{held}</devices>")
    assert Told(theirs).host_devices == ("pci 0000:3b:00.1", "usb bus 1 device 4", "usb", "pci 0000:3b:00.1")


def test_a_foreign_or_broken_marker_is_none() -> None:
    assert read_marker("<other/>") is None
    assert read_marker("not XML") is None
    assert read_marker('<!DOCTYPE vm [<!ENTITY x SYSTEM "file:///etc/shadow">]><vm cluster="&x;"/>') is None


def test_a_card_without_a_network_is_refused_where_the_host_has_no_default() -> None:
    with pytest.raises(Rejected) as refused:
        build(replace(FULL, default_network=None))
    assert refused.value.code == "no-network"


def test_the_seeds_place_cannot_be_taken_by_a_disk() -> None:
    with pytest.raises(Rejected) as refused:
        build(replace(FULL, disks=(("vdz", HOME / "vdz.qcow2"),)))
    assert refused.value.code == "bad-spec"


def test_nothing_that_is_typed_can_become_markup() -> None:
    assert "<evil/>" not in build(replace(SMALL, cluster='"/><evil/>'))
