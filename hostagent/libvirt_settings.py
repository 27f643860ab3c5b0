"""What libvirtd and QEMU must be set to so that guests travel encrypted with the host's certificates.

Only the lines and links that are ours: whatever else an operator made stays. Must not restart anything.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

BEGIN = "# vmorch: begin (written by `vmorch-agent setup-libvirt`, which replaces this block)"
END = "# vmorch: end"

Settings = Mapping[str, str | int]


PLACES = {
    "ca_file": ("CA/cacert.pem", "cacert.pem"),
    "crl_file": ("CA/cacrl.pem", "cacrl.pem"),
    "cert_file": ("libvirt/servercert.pem", "servercert.pem"),
    "key_file": ("libvirt/private/serverkey.pem", "serverkey.pem"),
}
"""Setting -> where libvirtd looks under /etc/pki, whatever it is set to, when it is told to read its files again, and
the name of the file in the host's own directory."""


def libvirtd_settings(files: Mapping[str, Path]) -> Settings:
    """libvirtd.conf: serve TLS with these files, to those alone who hold a certificate of the cluster that was not
    revoked."""
    return {
        "listen_tls": 1,
        "auth_tls": "none",
        **{key: str(path) for key, path in files.items()},
        "tls_no_verify_certificate": 0,
    }


def own_files(pki: Path) -> dict[str, Path]:
    """The files in the host's own directory."""
    return {key: pki / name for key, (_, name) in PLACES.items()}


def default_files(root: Path) -> dict[str, Path]:
    """The files where libvirtd looks by itself; `root` is /etc/pki."""
    return {key: root / place for key, (place, _) in PLACES.items()}


def taken(root: Path, pki: Path) -> list[Path]:
    """The places where libvirtd looks by itself that hold something else than a link to the host's own file."""
    own = own_files(pki)
    return [
        path
        for key, path in default_files(root).items()
        if os.path.lexists(path) and not (path.is_symlink() and path.readlink() == own[key])
    ]


def link(root: Path, pki: Path) -> None:
    """Let libvirtd find the host's own files where it looks by itself. None of the places may be taken."""
    own = own_files(pki)
    for key, path in default_files(root).items():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        if not path.is_symlink():
            path.symlink_to(own[key])


def qemu_settings(pki: Path, *, clear: bool) -> Settings:
    """qemu.conf: both ends of a migration show their certificates; without `clear` nothing travels unencrypted."""
    return {
        "migrate_tls_x509_cert_dir": str(pki),
        "migrate_tls_x509_verify": 1,
        "migrate_tls_force": 0 if clear else 1,
    }


def qemu_defaults(pki: Path) -> Settings:
    """qemu.conf: what else of QEMU speaks TLS does so with the same certificates, unless it was set otherwise."""
    return {"default_tls_x509_cert_dir": str(pki), "default_tls_x509_verify": 1}


def with_settings(text: str, settings: Settings, unless_set: Settings | None = None) -> str:
    """A configuration file's text with these settings in force, and those `unless_set` that it does not have itself."""
    lines = _without_block(text.splitlines())
    # libvirt takes the first of two lines for one setting
    lines = [f"# {line}" if _key(line) in settings else line for line in lines]
    set_already = {_key(line) for line in lines}
    found = {**settings, **{key: value for key, value in (unless_set or {}).items() if key not in set_already}}
    while lines and not lines[-1].strip():
        lines.pop()
    return "\n".join([*lines, *([""] if lines else []), BEGIN, *shown(found), END, ""])


def shown(settings: Settings) -> list[str]:
    """Settings as lines of a configuration file."""
    return [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in settings.items()]


def _without_block(lines: list[str]) -> list[str]:
    if BEGIN not in lines or END not in lines[lines.index(BEGIN) :]:
        return lines
    begin = lines.index(BEGIN)
    return [*lines[:begin], *lines[lines.index(END, begin) + 1 :]]


def _key(line: str) -> str:
    found = re.match(r"\s*([A-Za-z0-9_]+)\s*=", line)
    return found[1] if found else ""


def set_up_libvirt(pki: Path, libvirt_dir: Path, root: Path, write: bool, clear: bool) -> Iterator[str]:
    """Write everything, or only show it, and say what was done. Raises OSError."""
    others = taken(root, pki)
    if others:
        yield f"# {others[0]} is somebody else's: restart libvirtd after each renewal, it cannot be told of it"
    elif write:
        link(root, pki)
    files = own_files(pki) if others else default_files(root)
    texts = {
        "libvirtd.conf": (libvirtd_settings(files), {}),
        "qemu.conf": (qemu_settings(pki, clear=clear), qemu_defaults(pki)),
    }
    for name, (settings, unless_set) in texts.items():
        file = libvirt_dir / name
        if not write:
            yield "\n".join([f"# {file}", *shown({**settings, **unless_set}), ""])
            continue
        before = file.read_text() if file.exists() else ""
        after = with_settings(before, settings, unless_set)
        if after != before:
            file.write_text(after)
        yield f"{file}: {'set' if after != before else 'as it should be'}"
