"""Build the Debian cloud image: `python -m deploy.lab.images.debian OUT.qcow2` (as root; some minutes).

Must not hold any of the recipe; see debian_guest.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from deploy.lab.images.debian_guest import build_debian
from deploy.lab.images.errors import ImageBuildError


def main(arguments: list[str]) -> int:
    """Build the image named by the only argument; 0 when it stands, 2 on bad usage, 1 on failure."""
    if len(arguments) != 1:
        print("usage: python -m deploy.lab.images.debian OUT.qcow2", file=sys.stderr)
        return 2
    # a terminated build must still remove its scratch directory
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        build_debian(Path(arguments[0]).absolute(), lambda line: print(line, flush=True))
    except ImageBuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
