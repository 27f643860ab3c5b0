"""Bad input and hosts in trouble: the right code, the right exit code, and nothing left behind.

Every test ends with the `site` fixture's proof that no domain, no file and no promise stayed.
"""

import hashlib
import json
import re
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab_fixtures import BLANK, Site, needs_lab, until

pytestmark = needs_lab

CREATE = ("--image", "blank", "--memory", "64Mi", "--ready", "none")


def refusal(output: str) -> tuple[str, str]:
    """The code that the CLI printed, and all that it printed."""
    found = re.search(r"error\[([a-z-]+)\]", output)
    assert found, output
    return found[1], output


def qcow2(*, backing: str = "", features: int = 0, extension: tuple[int, bytes] | None = None) -> bytes:
    """A version 3 qcow2 image of a mebibyte, made by hand, so that no tool corrects what is wrong with it."""
    cluster = 1 << 16
    extensions = b""
    if extension is not None:
        kind, data = extension
        extensions += struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")
    extensions += struct.pack(">II", 0, 0)
    name = backing.encode()
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, 104 + len(extensions) if name else 0, len(name), 16, 1 << 20,
        0, 1, cluster, 2 * cluster, 1, 0, 0, features, 0, 0, 4, 104,
    )  # fmt: skip
    return (header + extensions + name).ljust(4 * cluster, b"\0")


# -- images -------------------------------------------------------------------------------------------------------


HOSTILE = {
    "a backing file": qcow2(backing="/etc/shadow"),
    "a backing file in JSON notation": qcow2(backing='json:{"driver":"raw","file.filename":"/etc/shadow"}'),
    "an external data file": qcow2(features=1 << 2, extension=(0x44415441, b"/etc/shadow")),
    "unknown feature bits": qcow2(features=1 << 40),
    "a corrupt mark": qcow2(features=1 << 1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_image_is_refused_and_its_bytes_are_not_kept(site: Site, tmp_path: Path, what: str) -> None:
    stored = stored_images(site)
    image = tmp_path / "image.qcow2"
    image.write_bytes(HOSTILE[what])
    code, _ = refusal(site.cli.run("image", "add", "evil", "--file", str(image), exits=6))
    assert code == "hostile-image"
    assert stored_images(site) == stored
    assert [image["name"] for image in site.api.items("/v1/images", name="evil")] == []


def test_the_hand_made_image_is_accepted_when_nothing_is_wrong_with_it(site: Site, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    image.write_bytes(qcow2())
    site.cli.run("image", "add", "good", "--file", str(image))
    site.cli.run("image", "remove", "good", "--yes")


def test_an_image_with_another_checksum_is_refused(site: Site, tmp_path: Path) -> None:
    stored = stored_images(site)
    image = tmp_path / "image.raw"
    image.write_bytes(BLANK + b"\1" * 512)
    wrong = hashlib.sha256(b"something else").hexdigest()
    arguments = ("image", "add", "other", "--file", str(image), "--format", "raw", "--sha256", wrong)
    assert refusal(site.cli.run(*arguments, exits=6))[0] == "wrong-checksum"
    assert stored_images(site) == stored


def stored_images(site: Site) -> set[str]:
    return {path.name for path in (site.lab.directory / "server/images").iterdir()}


# -- requests -----------------------------------------------------------------------------------------------------


def test_an_unknown_image_is_refused(site: Site) -> None:
    output = site.cli.run("vm", "create", "web", "--image", "nothing", "--memory", "64Mi", exits=3)
    assert refusal(output)[0] == "no-such-image"


def test_a_name_that_is_taken_is_refused_until_its_vm_is_gone(site: Site) -> None:
    site.api.create("web", start=False)
    assert refusal(site.cli.run("vm", "create", "web", *CREATE, exits=5))[0] == "name-taken"
    assert len(site.api.items("/v1/vms")) == 1
    site.cli.run("vm", "delete", "web", "--yes")
    site.cli.run("vm", "create", "web", *CREATE, "--no-start")


@pytest.mark.parametrize("name", ["Web", "-web", "web-", "we b", "web.example", "w" * 64, "../web", "wéb"])
def test_a_malformed_name_is_refused(site: Site, name: str) -> None:
    answer = site.api.refused("/v1/vms", {"name": name, "image": "blank", "memory": 64})
    assert (answer["status"], answer["code"]) == (422, "bad-name")
    code, said = refusal(site.cli.run("vm", "create", "--image", "blank", "--memory", "64Mi", "--", name, exits=2))
    assert (code, "1 to 63 of a-z, 0-9 and -" in said) == ("bad-name", True)


def test_when_no_host_fits_every_host_says_why(site: Site) -> None:
    output = site.cli.run("vm", "create", "big", "--image", "blank", "--memory", "900Gi", exits=6)
    code, said = refusal(output)
    assert code == "no-host-fits"
    assert re.search(r"hv-01 +needs 921600 MiB, \d+ left of \d+", said), said
    assert re.search(r"hv-02 +needs 921600 MiB, \d+ left of \d+", said), said
    output = site.cli.run("vm", "create", "big", *CREATE, "--host", "hv-09", exits=6)
    assert "not hv-09, which was asked for" in output


# -- hosts in trouble ---------------------------------------------------------------------------------------------


def test_a_command_for_an_unreachable_host_is_refused_and_works_when_it_is_back(site: Site) -> None:
    site.api.create("web", placing={"host": "hv-01"})
    host = site.host("hv-01")
    host.cut_link()
    try:
        until(lambda: site.api.host("hv-01")["state"] == "unreachable", 30, "the host's silence")
        code, output = refusal(site.cli.run("vm", "stop", "web", "--force", "--yes", exits=7))
        assert (code, "hv-01" in output) == ("host-offline", True)
        assert site.api.vm("web")["state"] == "unknown"
        assert refusal(site.cli.run("vm", "create", "shop", *CREATE, "--host", "hv-01", exits=6))[0] == "no-host-fits"
    finally:
        host.restore_link()
    site.connected()
    site.cli.run("vm", "stop", "web", "--force", "--grace", "0s", "--yes")
    assert site.domains("hv-01") == {site.api.vm("web")["id"]: False}


@contextmanager
def small_disk(site: Site, host: str, size: str) -> Iterator[None]:
    """The host's own storage is a small, empty file system meanwhile."""
    machine = site.host(host)
    machine.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/srv/vmorch/local"])
    try:
        yield
        # what is on it now is what a failed operation left there
        left = machine.run(["find", "/srv/vmorch/local/vmorch/vms", "-mindepth", "1"], check=False).stdout
        drafts = machine.run(["find", "/srv/vmorch/local", "-name", ".*"], check=False).stdout
        assert (left, drafts) == ("", "")
    finally:
        # the agent may just be looking there
        until(lambda: machine.run(["umount", "/srv/vmorch/local"], check=False).returncode == 0, 20, "the unmount")


def test_a_full_disk_is_told_and_nothing_is_left_on_it(site: Site, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(BLANK * 32)
    site.cli.run("image", "add", "large", "--file", str(image), "--format", "raw")
    with small_disk(site, "hv-02", "16m"):
        # no room for the image's bytes
        arguments = ("vm", "create", "web", "--image", "large", "--memory", "64Mi", "--host", "hv-02", "--no-start")
        assert refusal(site.cli.run(*arguments, exits=1))[0] == "disk-full"
        assert site.host("hv-02").run(["find", "/srv/vmorch/local", "-type", "f"]).stdout == ""
        # room for the image, but not for what its disk may become
        output = site.cli.run("vm", "create", "web", *CREATE, "--host", "hv-02", "--no-start", exits=1)
        assert refusal(output)[0] == "disk-full"
    site.assert_empty()
    site.api.create("web", placing={"host": "hv-02"})
    site.clean()
    site.cli.run("image", "remove", "large", "--yes")


EXTRA_NETWORK = "<network><name>extra</name><forward mode='bridge'/><bridge name='br0'/></network>"


def test_what_libvirt_refuses_is_told_in_its_words_and_taken_back(site: Site) -> None:
    host = site.host("hv-01")
    site.virsh("hv-01", "net-define", "/dev/stdin", text=EXTRA_NETWORK)
    site.virsh("hv-01", "net-start", "extra")
    # an agent tells its networks when it says hello
    host.kill("agent")
    host.start("agent")
    until(lambda: "extra" in site.api.host("hv-01")["facts"]["networks"], 30, "the network among the host's facts")
    site.virsh("hv-01", "net-destroy", "extra")
    site.virsh("hv-01", "net-undefine", "extra")
    output = site.cli.run("vm", "create", "web", *CREATE, "--net", "extra", exits=1)
    code, said = refusal(output)
    assert code == "libvirt-refused"
    assert "no network with matching name 'extra'" in said
    site.assert_empty()


FOREIGN = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
</domain>
"""


@contextmanager
def foreign_domain(site: Site, host: str, name: str) -> Iterator[str]:
    """A domain that somebody else made; at the end it must be as it was."""
    made = str(uuid.uuid4())
    site.virsh(host, "define", "/dev/stdin", text=FOREIGN.format(name=name, uuid=made))
    before = site.virsh(host, "dumpxml", made)
    try:
        yield made
        assert site.virsh(host, "dumpxml", made) == before
    finally:
        site.virsh(host, "undefine", made)


def unmanaged(site: Site, host: str) -> list[str]:
    return list(site.api.host(host)["unmanaged"])


def test_a_domain_of_somebody_else_is_listed_and_not_touched(site: Site) -> None:
    with foreign_domain(site, "hv-01", "legacy"):
        until(lambda: unmanaged(site, "hv-01") == ["legacy"], 30, "the foreign domain under its host")
        assert "legacy" in site.cli.run("host", "describe", "hv-01")
        site.api.create("web", placing={"host": "hv-01"})
        site.cli.run("vm", "delete", "web", "--yes")
    until(lambda: unmanaged(site, "hv-01") == [], 30, "the end of the foreign domain")


def test_a_foreign_domain_under_a_vms_own_name_is_neither_started_nor_deleted(site: Site) -> None:
    vm = site.api.create("web", placing={"host": "hv-01"}, start=False)
    site.virsh("hv-01", "undefine", vm)
    with foreign_domain(site, "hv-01", vm):
        until(lambda: unmanaged(site, "hv-01") == [vm], 30, "the foreign domain under its host")
        until(lambda: site.api.vm(vm)["power"] == "absent", 30, "the VM's absence")
        # the VM was seen to be gone, so nothing is even tried
        assert refusal(site.cli.run("vm", "start", "web", exits=6))[0] == "wrong-power-state"
        code, said = refusal(site.cli.run("vm", "delete", "web", "--yes", exits=1))
        assert (code, vm in said) == ("not-ours", True)
        assert site.api.vm(vm)["operation"] is None
    until(lambda: unmanaged(site, "hv-01") == [], 30, "the end of the foreign domain")
    site.cli.run("vm", "delete", "web", "--yes")


def test_a_refusal_is_the_same_document_for_programs(site: Site) -> None:
    process = site.cli.start("vm", "describe", "nobody", "-o", "json")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3
    document: dict[str, Any] = json.loads(out or err)
    assert (document["code"], document["status"]) == ("no-such-vm", 404)
