"""`vmorch-agent` as it is typed: where only the CLI is installed, it says what to install."""

import sys
from importlib.util import find_spec

NEEDED = ("libvirt", "structlog", "nats", "lxml")


def main() -> None:
    """Run the agent's command line."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(f"error: the agent is not installed: {', '.join(missing)} missing\nhint: pip install 'vmorch[agent]'")
    from hostagent.main import main as run

    run()
