"""What libvirtd and QEMU must be set to so that guests travel encrypted with the host's certificates.

Texts only, and only the lines that are ours: whatever else an operator wrote stays. Must not restart anything.
"""

import re
from collections.abc import Mapping
from pathlib import Path

BEGIN = "# vmorch: begin (written by `vmorch-agent setup-libvirt`, which replaces this block)"
END = "# vmorch: end"

Settings = Mapping[str, str | int]


def libvirtd_settings(pki: Path) -> Settings:
    """libvirtd.conf: serve TLS, to those alone who hold a certificate of the cluster that was not revoked."""
    return {
        "listen_tls": 1,
        "auth_tls": "none",
        "ca_file": str(pki / "cacert.pem"),
        "crl_file": str(pki / "cacrl.pem"),
        "cert_file": str(pki / "servercert.pem"),
        "key_file": str(pki / "serverkey.pem"),
        "tls_no_verify_certificate": 0,
    }


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
