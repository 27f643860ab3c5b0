"""Guest images for the lab, built from Debian packages: a small one for tests, a cloud image for the real thing."""

from deploy.lab.images.errors import ImageBuildError
from deploy.lab.images.tiny_guest import build_tiny, cached_tiny

__all__ = ["ImageBuildError", "build_tiny", "cached_tiny"]
