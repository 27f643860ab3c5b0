"""What a guest holds and what lies under it, both asked without the product."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.errors import LabError
from deploy.lab.host_files import LOCAL_DIR, SHARED_DIR
from tests.integration.lab_fixtures import Site, tiny_image, until

MARK = "/data/mark"
FLEETING = "/tmp/fleeting"
"""In the guest's memory only."""


@dataclass(frozen=True)
class State:
    """What a guest holds: the sums of a file, of a raw disk and of what its memory alone has, and which boot it is."""

    file: str
    raw: str
    fleeting: str
    boot: str

    @property
    def on_disk(self) -> tuple[str, str]:
        return self.file, self.raw


class Kept:
    """A guest on a real host with a second, raw disk, and means to change and to read it."""

    def __init__(self, site: Site, vm: str) -> None:
        self.site, self.vm = site, vm

    @property
    def host(self) -> str:
        return str(self.site.api.vm(self.vm)["host"])

    def shell(self, script: str) -> str:
        """What a script printed inside the guest."""
        return self.site.in_guest(self.host, self.vm, "/bin/sh", "-c", script)

    def write(self, text: str) -> State:
        """Change everything that the guest holds, and have it on its disks."""
        self.shell(
            f"echo {text} > {FLEETING}; (echo {text}; dd if=/dev/urandom bs=64k count=20) > {MARK} 2>/dev/null; "
            f"dd if={MARK} of=/dev/vdb bs=64k conv=notrunc 2>/dev/null; sync"
        )
        return self.state()

    def state(self) -> State:
        """What the guest holds, read from its disks and not from its caches."""
        said = self.shell(
            "sync; echo 3 > /proc/sys/vm/drop_caches; "
            f"md5sum < {MARK}; dd if=/dev/vdb bs=64k count=32 2>/dev/null | md5sum; "
            f"cat {FLEETING} 2>/dev/null || echo; "
            "cat /proc/sys/kernel/random/boot_id"
        ).splitlines()
        assert len(said) == 4, said
        file, raw, fleeting, boot = (line.split()[0] if line.strip() else "" for line in said)
        return State(file, raw, fleeting, boot)

    def up(self) -> None:
        """Wait until the guest's agent answers."""

        def answers() -> bool:
            try:
                return "ok" in self.shell("echo ok")
            except (AssertionError, LabError):
                return False

        until(answers, 90, "the guest's agent")

    def told(self) -> str:
        """What its host says by itself, for whoever has to find out why a test failed."""
        host = self.site.host(self.host)
        script = (
            f"timeout 5 virsh domstate --reason {self.vm}; timeout 5 virsh domjobinfo {self.vm}; "
            "ps -eo pid,stat,etimes,args | cut -c1-160"
        )
        found = [host.run(["sh", "-c", script], check=False).stdout]
        for daemon in ("agent", "libvirtd"):
            lines = (host.directory / "log" / f"{daemon}.log").read_text(errors="replace").splitlines()
            found.append("\n".join([f"-- {daemon}", *lines[-40:]]))
        return "\n".join(found)

    # -- what lies on disk ----------------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        shared = self.site.host(self.host).shared / "vmorch/vms" / self.vm
        return shared if shared.exists() else self.site.host(self.host).local / "vmorch/vms" / self.vm

    def chains(self) -> dict[str, list[str]]:
        """For each layer file the files of its chain by name, as qemu-img sees them, images left out."""
        paths = sorted(self.directory.glob("vd?*.qcow2"))
        # one process in the host for all: its start takes longer than what it does
        script = 'for each; do qemu-img info --output=json --backing-chain -U "$each" || exit 1; done'
        argv = ["sh", "-ec", script, "sh", *map(self._inside, paths)]
        told, decoder, at = str(self.site.host(self.host).run(argv).stdout), json.JSONDecoder(), 0
        found = {}
        for path in paths:
            chain, at = decoder.raw_decode(told, at)
            at += len(told[at:]) - len(told[at:].lstrip())
            names = [Path(each["filename"]).name for each in chain]
            found[path.name] = [name for name in names if name.startswith("vd")]
        return found

    def assert_sound(self) -> None:
        """Every layer that is kept or written to is there and undamaged, so is every kept memory, and nothing else is,
        and nobody else can read any of it."""
        for file in self.assert_complete():
            # a guest that writes has clusters taken that its file does not show yet: those are leaks and no damage
            until(lambda file=file: not self._damage(file), 10, f"a sound {file}")  # type: ignore[misc]

    def assert_complete(self) -> list[str]:
        """The same without a look into the layers; their files."""
        vm, chains = self.site.api.vm(self.vm), self.chains()
        kept = {_file(disk["name"], disk.get("layer", 0)) for disk in vm["spec"]["disks"]}
        for snapshot in vm["snapshots"]:
            kept |= {_file(disk, layer) for disk, layer in snapshot["layers"].items()}
        needed = {name for file in kept for name in chains[file]}
        assert needed == set(chains), (kept, chains)
        memories = {f"memory.{each['number']}" for each in vm["snapshots"] if each["memory"]}
        assert {path.name for path in self.directory.glob("memory.*")} == memories, vm["snapshots"]
        for path in sorted(self.directory.iterdir()):
            if path.name.startswith(("vd", "memory.")):
                assert path.stat().st_mode & 0o077 == 0, path
        return list(chains)

    def _damage(self, file: str) -> str:
        argv = ["qemu-img", "check", "--output=json", "-U", self._inside(self.directory / file)]
        told = self.site.host(self.host).run(argv, check=False).stdout
        found = json.loads(told)
        return told if found.get("corruptions") or found["check-errors"] else ""

    def _inside(self, path: Path) -> str:
        host = self.site.host(self.host)
        root, seen = (host.shared, SHARED_DIR) if path.is_relative_to(host.shared) else (host.local, LOCAL_DIR)
        return str(Path(seen) / path.relative_to(root))


def kept_on_shared(site: Site) -> Iterator[Kept]:
    """A guest with two disks on shared storage, and afterwards nothing of it."""
    site.clean()
    image, digest = tiny_image()
    site.cli.run("image", "add", "tiny", "--file", str(image), "--sha256", digest)
    site.api.do(
        "/v1/vms",
        {"name": "kept", "image": "tiny", "memory": 128, "storage": "shared", "placing": {"host": "hv-01"},
         "extra_disks": [{"size": 1, "storage": "shared"}]},
    )  # fmt: skip
    yield Kept(site, str(site.api.vm("kept")["id"]))
    site.clean()
    site.cli.run("image", "remove", "tiny", "--yes")


def _file(disk: str, layer: int) -> str:
    return f"{disk}.{layer}.qcow2" if layer else f"{disk}.qcow2"
