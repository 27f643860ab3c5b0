"""Know where a host's certificate for migrations lies. Must not make, read or judge one."""

from pathlib import Path

FILES = ("cacert.pem", "clientcert.pem", "clientkey.pem", "servercert.pem", "serverkey.pem")


def lacking(directory: Path) -> tuple[str, ...]:
    """Which of the files are not there."""
    return tuple(name for name in FILES if not (directory / name).is_file())
