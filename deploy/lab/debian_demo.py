"""A real Debian 12 in the lab: its image built from Debian's packages, its cloud-init applying our seed.

Run as `deploy/lab/try-debian`; some minutes under software emulation. Leaves the lab up.
"""

import argparse
import sys
import tempfile
import time

from deploy.lab.errors import LabError
from deploy.lab.images import ImageBuildError, build_debian
from deploy.lab.lab import Lab
from deploy.lab.operator import DemoFailed, Operator, cache_directory

VM, IMAGE = "debian-demo", "debian-12"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHZtb3JjaC1kZW1vLWtleS1ub3QtZm9yLXVzZS0wMDAw demo"
BOOT = 900.0
"""Seconds that a cloud image may take to finish its first boot without KVM on a busy machine."""

USER_DATA = """\
#cloud-config
write_files:
  - path: /etc/vmorch-demo
    content: written by cloud-init
runcmd:
  - - sh
    - -c
    - >-
      { echo "vmorch-demo hostname=$(hostname)";
      echo "vmorch-demo file=$(cat /etc/vmorch-demo)";
      echo "vmorch-demo keys=$(cat /home/*/.ssh/authorized_keys /root/.ssh/authorized_keys | grep -c demo)";
      echo "vmorch-demo end"; } > /dev/ttyS0
"""


def demonstrate(lab: Lab) -> None:
    """Build or take the image, create the VM, and show what the guest says. Raises DemoFailed."""
    image = cache_directory() / "debian-12.qcow2"
    if not image.exists():
        image.parent.mkdir(parents=True, exist_ok=True)
        build_debian(image, lambda line: print(f"  {line}", flush=True))
    operator = Operator(lab)
    operator.clears_away(VM)
    if not any(each["name"] == IMAGE for each in operator.asks("image", "list")["items"]):
        operator.types("image", "add", IMAGE, "--file", str(image))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as seed:
        seed.write(USER_DATA)
        seed.flush()
        operator.types(
            "vm", "create", VM, "--image", IMAGE, "--memory", "512Mi", "--vcpus", "2", "--key", KEY,
            "--user-data", seed.name, "--ready", "agent", "--ready-within", "15m",
        )  # fmt: skip
    vm = next(each for each in operator.asks("vm", "list")["items"] if each["name"] == VM)
    print("\nwaiting for cloud-init to say on the serial console what it did", flush=True)
    for line in _said(lab, vm["host"], vm["id"]):
        print(f"  {line}", flush=True)
    operator.types("vm", "describe", VM)


def _said(lab: Lab, host: str, vm: str) -> list[str]:
    console = lab.host(host).local / "vmorch" / "vms" / vm / "serial.log"
    deadline = time.monotonic() + BOOT
    while True:
        lines = [line.strip() for line in console.read_text(errors="replace").splitlines() if "vmorch-demo " in line]
        if any(line.endswith("vmorch-demo end") for line in lines):
            break
        if time.monotonic() > deadline:
            raise DemoFailed(f"cloud-init did not finish within {BOOT:.0f} s; see {console}")
        time.sleep(0.5)
    for wanted in (f"hostname={VM}", "file=written by cloud-init", "keys="):
        if not any(wanted in line for line in lines):
            raise DemoFailed(f"the guest did not say {wanted}: {lines}")
    if any("keys=0" in line for line in lines):
        raise DemoFailed("the ssh key did not arrive in the guest")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy/lab/try-debian", description=__doc__)
    parser.add_argument("--name", default="lab", help="the lab's name (default: lab)")
    arguments = parser.parse_args()
    began = time.monotonic()
    lab = Lab(arguments.name, say=lambda line: print(line, flush=True))
    try:
        lab.up()
        demonstrate(lab)
    except (LabError, ImageBuildError, DemoFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\nDone in {time.monotonic() - began:.0f} s. Take the lab away with: deploy/lab/down --name {lab.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
