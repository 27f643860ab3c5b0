"""An operator at a terminal of the lab: types commands before the reader's eyes and reads what they print."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from deploy.lab.lab import Lab


class DemoFailed(Exception):
    """A step of the demonstration did not do what it promises."""


class Operator:
    """Uses the `vmorch` beside this Python against a lab that is up, as its admin."""

    def __init__(self, lab: Lab) -> None:
        self._environment = {
            **os.environ,
            "VMORCH_API": f"unix:{lab.control.api_socket}",
            "VMORCH_TOKEN": lab.control.admin_token(),
        }

    def types(self, *arguments: str, lenient: bool = False) -> None:
        """Run a command and show it with all it prints. Raises DemoFailed if it fails, unless `lenient`."""
        print(f"\n$ vmorch {shlex.join(arguments)}", flush=True)
        try:
            self._run(arguments, None)
        except DemoFailed:
            if not lenient:
                raise

    def asks(self, *arguments: str) -> Any:
        """What a command answers as JSON. Raises DemoFailed if it fails."""
        return json.loads(self._run((*arguments, "-o", "json"), subprocess.PIPE))

    def clears_away(self, name: str) -> None:
        """Delete the VM of this name if a run that was killed left it, waiting for what is still under way on it."""
        for vm in self.asks("vm", "list")["items"]:
            if vm["name"] != name:
                continue
            if vm["operation"]:
                self.types("op", "cancel", vm["operation"], lenient=True)
                self.types("op", "wait", vm["operation"], lenient=True)
            if any(each["id"] == vm["id"] for each in self.asks("vm", "list")["items"]):
                self.types("vm", "delete", name, "--yes")

    def _run(self, arguments: tuple[str, ...], stdout: int | None) -> str:
        vmorch = Path(sys.executable).with_name("vmorch")
        done = subprocess.run(
            [str(vmorch), *arguments], env=self._environment, stdout=stdout, text=True, check=False
        )
        if done.returncode != 0:
            raise DemoFailed(f"vmorch {shlex.join(arguments)} ended with exit code {done.returncode}")
        return done.stdout or ""


def cache_directory() -> Path:
    """Where built guest images are kept between runs."""
    chosen = os.environ.get("VMORCH_LAB_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache/vmorch/lab"
