"""A host's certificate, key and what it trusts, as files under the names that libvirt and QEMU look for.

All of them change at one moment: the names are links through `current`, which is replaced whole, so that no power cut
leaves a key beside another key's certificate. Must not ask for anything, nor replace a file that is not its own.
"""

import grp
import os
import shutil
import tempfile
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from msgspec import Struct

from vmorch.core.aggregates.certificate import is_address

AUTHORITY, REVOKED, CERTIFICATE, KEY = "ca.pem", "crl.pem", "cert.pem", "key.pem"
CURRENT = "current"
NAMES = {
    # QEMU's, in migrate_tls_x509_cert_dir
    "ca-cert.pem": AUTHORITY,
    "ca-crl.pem": REVOKED,
    "server-cert.pem": CERTIFICATE,
    "server-key.pem": KEY,
    "client-cert.pem": CERTIFICATE,
    "client-key.pem": KEY,
    # libvirt's, in a URI's pkipath and in libvirtd.conf
    "cacert.pem": AUTHORITY,
    "cacrl.pem": REVOKED,
    "servercert.pem": CERTIFICATE,
    "serverkey.pem": KEY,
    "clientcert.pem": CERTIFICATE,
    "clientkey.pem": KEY,
}
"""Name in the directory -> which file of the current set it is."""

_DRAFT = ".new-"


def lacking(directory: Path) -> tuple[str, ...]:
    """Which of the files that a guest needs to travel encrypted are not in the directory."""
    return tuple(name for name in sorted(NAMES) if NAMES[name] != REVOKED and not (directory / name).is_file())


class BadPki(Exception):
    """Certificates cannot be used or stored. `code` is `bad-certificate`, `other-authority`, `not-ours` or
    `no-such-group`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OtherAuthority(BadPki):
    """A list of revoked certificates is not by the authority that this host trusts."""


class Held(Struct, frozen=True, kw_only=True):
    """The certificate in use. `fingerprint` is the SHA-256 of all of it."""

    fingerprint: str
    names: tuple[str, ...]
    begins: datetime
    expires: datetime


class Draft:
    """A new key that has no certificate yet, on the disk already: what can fail fails before anybody signs."""

    def __init__(self, place: Path, key: ec.EllipticCurvePrivateKey) -> None:
        self.place = place
        self._key = key

    def request(self, name: str, names: tuple[str, ...]) -> str:
        """A certificate request for a host of this name, in PEM."""
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        wanted = x509.SubjectAlternativeName([_general(each) for each in names])
        made = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(wanted, critical=False)
        return made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


class Store:
    """The certificates in `directory`, readable by root and, if named, by a `group`."""

    def __init__(self, directory: Path, group: str | None = None) -> None:
        self.directory = directory
        self._group = group

    def held(self) -> Held | None:
        """The certificate in use; None if there is none. Raises BadPki if what is there does not fit together."""
        place = self.directory / CURRENT
        if not place.exists():
            return None
        try:
            return _fitting(
                (place / CERTIFICATE).read_bytes(), (place / AUTHORITY).read_bytes(), (place / KEY).read_bytes()
            )
        except FileNotFoundError as error:
            raise BadPki("bad-certificate", f"{error.filename} is missing") from error

    def draft(self) -> Draft:
        """Make a new key. Raises BadPki, OSError."""
        group = self._group_id()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        foreign = [name for name in NAMES if not self._ours(name)]
        if foreign:
            raise BadPki("not-ours", f"{self.directory} holds {', '.join(foreign)} of somebody else: set pki_dir")
        if group is not None:
            os.chown(self.directory, -1, group)
            self.directory.chmod(0o750)
        for leftover in self.directory.glob(f"{_DRAFT}*"):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        key = ec.generate_private_key(ec.SECP256R1())
        place = Path(tempfile.mkdtemp(dir=self.directory, prefix=_DRAFT))
        self._write(place / KEY, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Draft(place, key)

    def take(self, draft: Draft, certificate: str, authority: str, revoked: str) -> Held:
        """Use the draft's key with this certificate from now on. Raises BadPki, OSError, and changes nothing then."""
        key = (draft.place / KEY).read_bytes()
        held = _fitting(certificate.encode(), authority.encode(), key)
        _check_revoked(revoked, authority.encode())
        for name, text in ((CERTIFICATE, certificate), (AUTHORITY, authority), (REVOKED, revoked)):
            self._write(draft.place / name, text.encode())
        group = self._group_id()
        if group is not None:
            os.chown(draft.place, -1, group)
            draft.place.chmod(0o750)
        before = self._current_name()
        place = self.directory / f"{held.begins:%Y%m%d}-{held.fingerprint[:16]}"
        os.replace(draft.place, place)
        _sync(self.directory)
        self._link(CURRENT, place.name)
        for name, target in NAMES.items():
            self._link(name, f"{CURRENT}/{target}")
        _sync(self.directory)
        self._remove_all_but({place.name, before})
        return held

    def renew_revoked(self, revoked: str) -> bool:
        """Refuse what this list names from now on; whether that is anything new. Raises BadPki, OtherAuthority,
        OSError."""
        place = self.directory / CURRENT
        authority = (place / AUTHORITY).read_bytes()
        new = _check_revoked(revoked, authority)
        try:
            old = _check_revoked((place / REVOKED).read_text(), authority)
        except (BadPki, FileNotFoundError):
            old = None
        if old is not None and (_number(new) < _number(old) or (_serials(new) == _serials(old) and _fresh(old, new))):
            return False
        draft = place.resolve() / f"{_DRAFT}{REVOKED}"
        draft.unlink(missing_ok=True)
        self._write(draft, revoked.encode())
        os.replace(draft, place.resolve() / REVOKED)
        _sync(place.resolve())
        return True

    def _current_name(self) -> str:
        link = self.directory / CURRENT
        return os.readlink(link) if link.is_symlink() else ""

    def _ours(self, name: str) -> bool:
        path = self.directory / name
        return not os.path.lexists(path) or (path.is_symlink() and os.readlink(path) == f"{CURRENT}/{NAMES[name]}")

    def _link(self, name: str, target: str) -> None:
        path = self.directory / name
        if path.is_symlink() and os.readlink(path) == target:
            return
        draft = self.directory / f"{_DRAFT}{name}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(target)
        os.replace(draft, path)

    def _remove_all_but(self, kept: set[str]) -> None:
        for place in self.directory.iterdir():
            # the one before is kept: somebody may be reading it
            if place.is_dir() and not place.is_symlink() and (place / KEY).exists() and place.name not in kept:
                shutil.rmtree(place)

    def _group_id(self) -> int | None:
        if self._group is None:
            return None
        try:
            return grp.getgrnam(self._group).gr_gid
        except KeyError as error:
            raise BadPki("no-such-group", f"there is no group {self._group}") from error

    def _write(self, path: Path, data: bytes) -> None:
        group = self._group_id()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            if group is not None:
                os.fchown(file.fileno(), -1, group)
                os.fchmod(file.fileno(), 0o640)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _fitting(certificate: bytes, authority: bytes, key: bytes) -> Held:
    """What a certificate says, if it is for this key and by this authority. Raises BadPki."""
    try:
        own, trusted = x509.load_pem_x509_certificate(certificate), x509.load_pem_x509_certificate(authority)
        private = load_pem_private_key(key, None)
        own.verify_directly_issued_by(trusted)
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise BadPki("bad-certificate", f"the certificate is not the authority's: {error}") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != own.public_key().public_bytes(*form):
        raise BadPki("bad-certificate", "the certificate is for another key")
    return Held(
        fingerprint=own.fingerprint(hashes.SHA256()).hex(),
        names=tuple(str(each.value) for each in names),
        begins=own.not_valid_before_utc,
        expires=own.not_valid_after_utc,
    )


def _check_revoked(text: str, authority: bytes) -> x509.CertificateRevocationList:
    try:
        found = x509.load_pem_x509_crl(text.encode())
        key = x509.load_pem_x509_certificate(authority).public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and found.is_signature_valid(key):
            return found
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadPki("bad-certificate", f"the list of revoked certificates cannot be read: {error}") from error
    raise OtherAuthority("other-authority", "the list of revoked certificates is another authority's")


def _serials(revoked: x509.CertificateRevocationList) -> set[int]:
    return {each.serial_number for each in revoked}


def _number(revoked: x509.CertificateRevocationList) -> int:
    return revoked.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _fresh(old: x509.CertificateRevocationList, new: x509.CertificateRevocationList) -> bool:
    """Whether a list need not be replaced by one that says the same: it will be good for long."""
    if old.next_update_utc is None or new.next_update_utc is None:
        return False
    lifetime = new.next_update_utc - new.last_update_utc
    return old.next_update_utc - new.last_update_utc > lifetime * 2 / 3


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ip_address(name)) if is_address(name) else x509.DNSName(name)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
