"""The one failure every image builder reports.

Must not hold recovery logic: a build either leaves a whole image or nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class ImageBuildError(Exception):
    """An image could not be built. `code` is stable; the message says what to do about it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def run_tool(*command: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a build tool to its end and return what it printed; its own words become the error."""
    argv: Sequence[str] = [str(part) for part in command]
    try:
        done = subprocess.run(argv, cwd=cwd, env=environment, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ImageBuildError("tool-missing", f"{argv[0]} is not installed on this machine") from error
    if done.returncode != 0:
        raise ImageBuildError("tool-failed", f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
