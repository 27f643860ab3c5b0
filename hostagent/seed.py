"""Make a VM's NoCloud seed: the little disk that cloud-init reads at first boot.

The same wish gives the same bytes, so that a repeated order changes nothing. What an operator typed goes through
a YAML writer, never into a text by hand. Must not touch files.
"""

import io
from typing import Any

import pycdlib
import yaml
from pycdlib.dates import DirectoryRecordDate

from vmorch.core.spec import NicSpec, SeedSpec

_LABEL = "cidata"
_EPOCH = bytes((100, 1, 1, 0, 0, 0, 0))
"""2000-01-01 00:00 UTC as ISO 9660 writes it in a directory record."""
_EPOCH_LONG = b"2000010100000000\0"
_VOLUME_DESCRIPTORS = (16, 17)
_SECTOR = 2048
_DATES_AT = (813, 830, 864)
"""Creation, modification and effective date within a volume descriptor (ECMA-119, 8.4.26 to 8.4.29)."""
_TIMESTAMPS = ("creation_time", "access_time", "modification_time", "attribute_change_time")


def seed_files(seed: SeedSpec, nics: tuple[NicSpec, ...], instance: str) -> dict[str, bytes]:
    """The files of the seed by name. `instance` is what cloud-init takes for the machine's identity."""
    meta: dict[str, Any] = {"instance-id": instance, "local-hostname": seed.hostname}
    if seed.ssh_keys:
        meta["public-keys"] = list(seed.ssh_keys)
    user_data = seed.user_data or "#cloud-config\n" + _yaml(_default_user_data(seed))
    files = {"meta-data": _yaml(meta), "user-data": user_data}
    if nics:
        files["network-config"] = _yaml(_network_config(nics))
    return {name: text.encode() for name, text in files.items()}


def seed_iso(files: dict[str, bytes]) -> bytes:
    """An ISO 9660 file system with Rock Ridge and Joliet names that holds the files."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=_LABEL)
    for name, data in files.items():
        short = "/" + name.upper().replace("-", "_") + ".;1"
        iso.add_fp(io.BytesIO(data), len(data), short, rr_name=name, joliet_path="/" + name, file_mode=0o100444)
    for descriptor in (iso.pvd, iso.joliet_vd):
        assert descriptor is not None
        for record in (descriptor.root_dir_record, *descriptor.root_dir_record.children):
            _stop_the_clock(record)
    written = io.BytesIO()
    iso.write_fp(written)
    iso.close()
    image = bytearray(written.getvalue())
    # pycdlib stamps the volume while it writes it
    for sector in _VOLUME_DESCRIPTORS:
        for at in _DATES_AT:
            start = sector * _SECTOR + at
            image[start : start + len(_EPOCH_LONG)] = _EPOCH_LONG
    return bytes(image)


def _default_user_data(seed: SeedSpec) -> dict[str, Any]:
    return {"hostname": seed.hostname, "ssh_authorized_keys": list(seed.ssh_keys)}


def _network_config(nics: tuple[NicSpec, ...]) -> dict[str, Any]:
    ethernets = {f"nic{index}": _ethernet(nic) for index, nic in enumerate(nics)}
    return {"version": 2, "ethernets": ethernets}


def _ethernet(nic: NicSpec) -> dict[str, Any]:
    card: dict[str, Any] = {"match": {"macaddress": nic.mac}}
    if nic.address is None:
        card["dhcp4"] = True
    else:
        card["addresses"] = [nic.address]
    if nic.gateway is not None:
        everywhere = "::/0" if ":" in nic.gateway else "0.0.0.0/0"
        card["routes"] = [{"to": everywhere, "via": nic.gateway}]
    if nic.nameservers:
        card["nameservers"] = {"addresses": list(nic.nameservers)}
    return card


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**6)


def _stop_the_clock(record: Any) -> None:
    record.date = _epoch()
    ridge = record.rock_ridge
    for entries in () if ridge is None else (ridge.dr_entries, ridge.ce_entries):
        stamps = None if entries is None else entries.tf_record
        for name in () if stamps is None else _TIMESTAMPS:
            if getattr(stamps, name) is not None:
                setattr(stamps, name, _epoch())


def _epoch() -> Any:
    date = DirectoryRecordDate()
    date.parse(_EPOCH)
    return date
