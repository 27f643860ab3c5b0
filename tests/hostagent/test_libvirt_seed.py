"""What cloud-init reads is exactly what was asked for, whatever was typed."""

import io
import time

import pycdlib
import pytest
import yaml

from hostagent.seed import seed_files, seed_iso
from vmorch.core.spec import NicSpec, SeedSpec

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB operator@desk"
FIXED = NicSpec(
    mac="52:54:00:aa:bb:cc", address="10.64.0.9/24", gateway="10.64.0.1", nameservers=("10.64.0.1", "10.64.0.2")
)
DHCP = NicSpec(mac="52:54:00:aa:bb:cd")


def read_back(image: bytes) -> dict[str, bytes]:
    """The files on a seed as a guest sees them."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    found = {}
    for child in iso.list_children(joliet_path="/"):
        name = child.file_identifier().decode("utf-16-be")
        if child.is_file():
            data = io.BytesIO()
            iso.get_file_from_iso_fp(data, joliet_path=f"/{name}")
            found[name] = data.getvalue()
    iso.close()
    return found


def test_a_seed_holds_its_files_under_their_names() -> None:
    files = seed_files(SeedSpec(hostname="web", ssh_keys=(KEY,)), (FIXED, DHCP), "i-1")
    image = seed_iso(files)
    assert image[32808:32814] == b"cidata"
    assert read_back(image) == files
    meta = yaml.safe_load(files["meta-data"])
    assert meta == {"instance-id": "i-1", "local-hostname": "web", "public-keys": [KEY]}
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert yaml.safe_load(files["user-data"]) == {"hostname": "web", "ssh_authorized_keys": [KEY]}


def test_the_network_is_told_by_mac_address() -> None:
    told = yaml.safe_load(seed_files(SeedSpec(hostname="web"), (FIXED, DHCP), "i-1")["network-config"])
    assert told == {
        "version": 2,
        "ethernets": {
            "nic0": {
                "match": {"macaddress": "52:54:00:aa:bb:cc"},
                "addresses": ["10.64.0.9/24"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.64.0.1"}],
                "nameservers": {"addresses": ["10.64.0.1", "10.64.0.2"]},
            },
            "nic1": {"match": {"macaddress": "52:54:00:aa:bb:cd"}, "dhcp4": True},
        },
    }


def test_a_vm_without_cards_is_told_nothing_about_the_network() -> None:
    assert "network-config" not in seed_files(SeedSpec(hostname="web"), (), "i-1")


@pytest.mark.parametrize(
    "typed", ["#!/bin/sh\necho hello\n", "#cloud-config\nruncmd: [ls]\n", "\u00fcml\u00e4ut: '\"\n"]
)
def test_user_data_is_passed_on_unchanged(typed: str) -> None:
    files = seed_files(SeedSpec(hostname="web", user_data=typed), (), "i-1")
    assert read_back(seed_iso(files))["user-data"] == typed.encode()


def test_a_key_with_a_line_break_stays_one_key() -> None:
    crooked = "ssh-ed25519 AAAA x\nlocal-hostname: evil"
    meta = yaml.safe_load(seed_files(SeedSpec(hostname="web", ssh_keys=(crooked,)), (), "i-1")["meta-data"])
    assert meta["local-hostname"] == "web"
    assert meta["public-keys"] == [crooked]


def test_the_same_wish_gives_the_same_bytes_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    files = seed_files(SeedSpec(hostname="web", ssh_keys=(KEY,)), (FIXED,), "i-1")
    first = seed_iso(files)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86400 * 40)
    assert seed_iso(files) == first
    assert seed_iso(seed_files(SeedSpec(hostname="web"), (FIXED,), "i-2")) != first
