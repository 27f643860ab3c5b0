"""A VM's whole life in the lab, before the reader's eyes: every command as an operator types it, and after each
what the guest itself says.

Run as `python -m deploy.lab.demo`. Leaves the lab up. Must not use anything that an operator does not have, but for
asking the guest over the lab's network and reading its serial console.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

from deploy.lab.errors import LabError
from deploy.lab.images import ImageBuildError, cached_tiny
from deploy.lab.lab import Lab
from deploy.lab.operator import DemoFailed, Operator, cache_directory

VM = "demo"
IMAGE = "tiny"
PATIENCE = 60.0


class Demo:
    """One run through the main job, in a lab that is up."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.operator = Operator(lab)

    def run(self) -> None:
        """Everything, in order. Raises DemoFailed."""
        self.operator.clears_away(VM)
        image = cached_tiny(cache_directory())
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        known = self.operator.asks("image", "list")["items"]
        if digest not in [each["digest"] for each in known]:
            self.operator.types("image", "add", IMAGE, "--file", str(image), "--sha256", digest)
        self.operator.types("image", "list")
        self.operator.types("vm", "create", VM, "--image", IMAGE, "--memory", "128Mi", "-m", "show me")
        first = self._guest_speaks()
        self.operator.types("vm", "list", "-o", "wide")
        self.operator.types("vm", "stop", VM)
        self.operator.types("vm", "start", VM)
        second = self._guest_speaks()
        if second["boot"] == first["boot"]:
            raise DemoFailed("the guest says that it never booted again")
        self.operator.types("vm", "delete", VM, "--yes")
        self.operator.types("event", "list", "--subject", f"vm/{second['instance_id']}")

    def _guest_speaks(self) -> dict[str, str]:
        """What the guest says of itself over HTTP; asked from the lab's network, where libvirt has no say."""
        vm = next(each for each in self.operator.asks("vm", "list")["items"] if each["name"] == VM)
        address = vm["addresses"][0] if vm["addresses"] else None
        if address is None:
            raise DemoFailed("the guest has no address")
        url = f"http://{address}/id.json"
        print(f"\n$ curl {url}        (from the lab's network, to the guest)", flush=True)
        ask = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=2).read().decode())"
        deadline = time.monotonic() + PATIENCE
        while True:
            done = self.lab.control.container.run([sys.executable, "-c", ask], check=False)
            if done.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise DemoFailed(f"the guest did not answer on {url}: {done.stderr.strip().splitlines()[-1:]}")
            time.sleep(0.2)
        print(done.stdout.strip(), flush=True)
        said: dict[str, str] = json.loads(done.stdout)
        if said["name"] != VM or said["instance_id"] != vm["id"]:
            raise DemoFailed(f"somebody else answered: {said}")
        return said


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy/lab/try", description=__doc__)
    parser.add_argument("--name", default="lab", help="the lab's name (default: lab)")
    parser.add_argument("--hosts", type=int, default=2, help="how many hosts (default: 2)")
    arguments = parser.parse_args()
    began = time.monotonic()
    lab = Lab(arguments.name, say=lambda line: print(line, flush=True))
    try:
        lab.up(arguments.hosts)
        Demo(lab).run()
    except (LabError, ImageBuildError, DemoFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    environment = lab.directory / "env"
    environment.write_text(
        f"export VMORCH_API=unix:{lab.control.api_socket}\n"
        f"export VMORCH_TOKEN=$(cat {lab.directory}/server/admin.token)\n"
        f"export PATH={Path(sys.executable).parent}:$PATH\n"
    )
    name = "" if arguments.name == "lab" else f" --name {arguments.name}"
    print(
        f"""
Done in {time.monotonic() - began:.0f} s. The lab is up; go on with:
  source {environment}
  vmorch host list
  vmorch vm create web-1 --image {IMAGE} --memory 128Mi
  vmorch event tail
and take it away with:
  deploy/lab/down{name}"""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
