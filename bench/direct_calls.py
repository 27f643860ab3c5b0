"""The same life of a VM by nothing but qemu-img and libvirt's own calls, to be compared with.

Runs on the lab host itself, in one process with an open connection, as the agent does: a request per line comes in,
`[began, ended]` on the machine's monotonic clock goes out. Makes what the agent makes (overlay, seed, the same
domain XML) but flushes nothing to the disk, journals nothing and reports nothing. Must not use vmorch's agent.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import libvirt
import msgspec

from hostagent.domain_xml import Definition, DomainType, build
from hostagent.seed import seed_files, seed_iso
from vmorch.core.ids import VmId
from vmorch.core.spec import VmSpec


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Do one thing with one VM. The rest is needed for `create` alone."""

    do: str
    vm: VmId
    spec: VmSpec | None = None
    base: str = ""
    directory: str = ""
    domain_type: DomainType = "qemu"
    network: str = ""


def create(connection: Any, wish: Wish) -> None:
    assert wish.spec is not None
    spec, directory = wish.spec, Path(wish.directory)
    image = spec.disks[0].image
    assert image is not None
    assert spec.seed is not None
    directory.mkdir(parents=True)
    disk, seed = directory / "vda.qcow2", directory / "seed.iso"
    size = str(spec.disks[0].size * 1024**3)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", image.format, "-b", wish.base, str(disk), size], check=True
    )
    seed.write_bytes(seed_iso(seed_files(spec.seed, spec.nics, wish.vm)))
    definition = Definition(
        vm=wish.vm,
        spec=spec,
        # the agent leaves alone what another cluster made
        cluster="direct",
        domain_type=wish.domain_type,
        disks=(("vda", disk),),
        seed=seed,
        serial_log=directory / "serial.log",
        default_network=wish.network,
    )
    connection.defineXMLFlags(build(definition), 0).create()


def stop(connection: Any, wish: Wish) -> None:
    connection.lookupByUUIDString(wish.vm).destroy()


def start(connection: Any, wish: Wish) -> None:
    connection.lookupByUUIDString(wish.vm).create()


def delete(connection: Any, wish: Wish) -> None:
    domain = connection.lookupByUUIDString(wish.vm)
    domain.destroy()
    domain.undefineFlags(0)
    directory = Path(wish.directory)
    for each in ("vda.qcow2", "seed.iso", "serial.log"):
        (directory / each).unlink(missing_ok=True)
    directory.rmdir()


VERBS = {"create": create, "stop": stop, "start": start, "delete": delete}


def main() -> None:
    connection = libvirt.open("qemu:///system")
    for line in sys.stdin:
        wish = msgspec.json.decode(line, type=Wish)
        began = time.monotonic()
        VERBS[wish.do](connection, wish)
        ended = time.monotonic()
        print(msgspec.json.encode((began, ended)).decode(), flush=True)


if __name__ == "__main__":
    main()
