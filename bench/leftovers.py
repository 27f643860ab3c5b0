"""Names for what a benchmark makes outside itself, and the end of what a killed run left under such a name.

Must not touch anything whose run is still alive.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.lab import state
from deploy.lab.lab import Lab, running_labs

_LAB = re.compile(r"bench-(\d+)")
_CLUSTER = re.compile(r"vmorch-bench-(\d+)-.*")


def lab_name(pid: int) -> str:
    """What the lab of a run is called."""
    return f"bench-{pid}"


def cluster_prefix(pid: int) -> str:
    """How the directories of a run's development clusters begin."""
    return f"vmorch-bench-{pid}-"


def end_dead_labs() -> None:
    """Take down every lab of a run that is gone. Needs root."""
    known = {name for name, _ in running_labs()}
    if state.HOME.exists():
        known |= {place.name for place in state.HOME.iterdir()}
    for name in known:
        if _owner_is_gone(_LAB, name):
            Lab(name).down()


def end_dead_clusters(parent: Path) -> None:
    """End every development cluster of a run that is gone, and remove its directory."""
    for place in parent.iterdir():
        if _owner_is_gone(_CLUSTER, place.name):
            down = [sys.executable, "-m", "vmorch.dev", "down", "--dir", str(place)]
            subprocess.run(down, check=False, capture_output=True)
            shutil.rmtree(place, ignore_errors=True)


def _owner_is_gone(pattern: re.Pattern[str], name: str) -> bool:
    found = pattern.fullmatch(name)
    return found is not None and not Path("/proc", found[1]).exists()
