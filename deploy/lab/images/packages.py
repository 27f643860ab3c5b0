"""Fetch Debian packages and lay out their files, without installing anything on this machine.

Must not run maintainer scripts or touch the dpkg database: packages are raw material here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deploy.lab.images.errors import ImageBuildError, run_tool


def candidate_versions(names: Iterable[str]) -> dict[str, str]:
    """The version apt would install of each package, according to the package lists on this machine."""
    wanted = sorted(set(names))
    versions: dict[str, str] = {}
    name = ""
    for line in run_tool("apt-cache", "--no-all-versions", "show", *wanted).splitlines():
        field, _, value = line.partition(": ")
        if field == "Package":
            name = value
        elif field == "Version":
            versions[name] = value
    missing = [name for name in wanted if name not in versions]
    if missing:
        raise ImageBuildError("package-unknown", f"apt knows no {', '.join(missing)}; run apt-get update")
    return versions


def newest_dependency(metapackage: str, prefix: str) -> str:
    """The concrete package a metapackage points to, such as the kernel behind linux-image-cloud-amd64."""
    for line in run_tool("apt-cache", "depends", metapackage).splitlines():
        relation, _, name = line.strip().partition(": ")
        if relation == "Depends" and name.startswith(prefix):
            return name
    raise ImageBuildError("package-unknown", f"{metapackage} depends on no {prefix}*; run apt-get update")


def unpack(versions: dict[str, str], into: Path, scratch: Path) -> None:
    """Download exactly these versions (apt verifies their hashes) and extract all of them into one tree."""
    scratch.mkdir(parents=True, exist_ok=True)
    into.mkdir(parents=True, exist_ok=True)
    # apt's sandbox user may not write to our private directory, and nothing here needs it to
    run_tool(
        "apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root",
        *(f"{name}={version}" for name, version in versions.items()), cwd=scratch,
    )  # fmt: skip
    for archive in sorted(scratch.glob("*.deb")):
        run_tool("dpkg-deb", "-x", archive, into)
