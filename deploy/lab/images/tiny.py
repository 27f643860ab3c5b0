"""Build the small guest's disk: `python -m deploy.lab.images.tiny OUT.qcow2`.

Must not hold any of the recipe; see tiny_guest.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from deploy.lab.images.errors import ImageBuildError
from deploy.lab.images.tiny_guest import build_tiny


def main(arguments: list[str]) -> int:
    """Build the image named by the only argument; 0 when it stands, 2 on bad usage, 1 on failure."""
    if len(arguments) != 1:
        print("usage: python -m deploy.lab.images.tiny OUT.qcow2", file=sys.stderr)
        return 2
    # a terminated build must still remove its scratch directory
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    try:
        image = build_tiny(Path(arguments[0]).absolute())
    except ImageBuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{image}: {image.stat().st_size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
