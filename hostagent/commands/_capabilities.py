"""Read what libvirt says that a host can do."""

import re
from typing import Any

from lxml import etree
from lxml.etree import _Element

_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, remove_blank_text=True)
_BOARD = re.compile(r"pc-q35-[0-9.]+")
_CHANGES_BY_ITSELF = ("counter", "microcode", "pages")
"""What libvirt says of a processor that is not the same after every boot, and that it compares with nothing."""


def machines(connection: Any) -> tuple[str, ...]:
    """The q35 boards that its QEMU can emulate, oldest first. Raises libvirtError."""
    named = _capabilities(connection).iterfind("guest/arch[@name='x86_64']/machine")
    found = {name for each in named for name in (each.get("canonical"), each.text) if name and _BOARD.fullmatch(name)}
    return tuple(sorted(found, key=_version))


def processor(connection: Any) -> str:
    """The host's processor as libvirt compares it. Raises libvirtError."""
    cpu = _capabilities(connection).find("host/cpu")
    if cpu is None:
        return ""
    for each in [child for child in cpu if child.tag in _CHANGES_BY_ITSELF]:
        cpu.remove(each)
    return etree.tostring(cpu, method="c14n").decode()


def _capabilities(connection: Any) -> _Element:
    return etree.fromstring(connection.getCapabilities().encode(), _PARSER)


def _version(machine: str) -> tuple[int, ...]:
    return tuple(int(part) for part in machine.removeprefix("pc-q35-").split(".") if part)
