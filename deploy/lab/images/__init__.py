"""Guest images for the lab, made from Debian packages: a small one for tests, a cloud image for the real thing.

    cached_tiny(directory)   the small guest, built once per recipe: what tests should ask for
    build_tiny(out)          the small guest, built now; no root, some seconds
    build_debian(out, hear)  Debian 12 with cloud-init; root, some minutes

Both boot from their own disk. Their kernel has no SATA driver: attach a seed as a virtio disk or as a CD-ROM on
virtio-scsi. Must not know libvirt or the orchestrator.
"""

from deploy.lab.images.debian_guest import build_debian
from deploy.lab.images.errors import ImageBuildError
from deploy.lab.images.tiny_guest import build_tiny, cached_tiny

__all__ = ["ImageBuildError", "build_debian", "build_tiny", "cached_tiny"]
