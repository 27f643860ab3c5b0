"""Small guests that go to and fro between two real hosts: some made by vmorch, as many by libvirt's own calls.

Must not measure anything.
"""

import contextlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.warm import MEMORY, PATIENCE, Direct, Warm, warm_lab
from deploy.lab.container import wait_for
from vmorch.core.ids import VmId

_BOOT = 180.0
_LAST_WORDS = re.compile(r"Kernel panic|Oops: |BUG: ")


class Travellers:
    """The guests, all on the first host when they are made."""

    def __init__(self, warm: Warm, ours: list[str], direct: list[VmId]) -> None:
        self.warm, self.lab, self.api, self.moments = warm, warm.lab, warm.api, warm.moments
        self.ours, self.direct = ours, direct

    def dead(self) -> list[str]:
        """The guests whose kernels said, on any host, that they had died."""
        return [each for each in (*self.ours, *self.direct) if any(map(_died, self._consoles(each)))]

    def _consoles(self, vm: str) -> Iterator[Path]:
        yield from self.lab.directory.glob(f"hv-*/local/vmorch/vms/{vm}/serial.log")
        yield self.lab.directory / "shared" / "direct" / vm / "serial.log"


@contextlib.contextmanager
def travellers(guests: int) -> Iterator[Travellers]:
    """A lab of our own in which so many guests of either kind have answered."""
    with warm_lab(2) as warm:
        names = [f"ours-{number}" for number in range(guests)]
        home = warm.lab.hosts[0].name
        for name in names:
            where = ("--storage", "shared", "--host", home)
            warm.vmorch("vm", "create", name, "--image", "tiny", "--memory", f"{MEMORY}Mi", *where)
        direct = [VmId(str(uuid.uuid4())) for _ in names]
        calls = Direct(warm.lab, warm.pin, root="/srv/vmorch/shared")
        try:
            for vm in direct:
                calls.do("create", vm, "direct")
        finally:
            calls.close()
        consoles = [warm.lab.directory / "shared" / "direct" / vm / "serial.log" for vm in direct]
        wait_for(lambda: all("ready " in _said(each) for each in consoles), _BOOT, "the guests of libvirt's own calls")
        warm.api.warm()
        ours = [str(warm.api.ask("GET", f"/v1/vms/{name}")["item"]["id"]) for name in names]
        yield Travellers(warm, ours, direct)


def virsh_migrate(source: Any, destination: Any, vm: str) -> None:
    """What an administrator types on the source, with the flags that vmorch uses."""
    flags = ["--live", "--p2p", "--persistent", "--undefinesource", "--unsafe", "--auto-converge", "--tls"]
    uri = f"qemu+tls://{destination.name}/system?pkipath=/srv/vmorch/agent/pki"
    source.run(["virsh", "-c", "qemu:///system", "migrate", *flags, vm, uri], timeout=PATIENCE)


def _died(console: Path) -> bool:
    return _LAST_WORDS.search(_said(console)) is not None


def _said(console: Path) -> str:
    return console.read_text(errors="replace") if console.exists() else ""
