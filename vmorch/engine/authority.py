"""The cluster's own certificate authority: signs what a host may carry, and the list of what is to be trusted no more.

A request only brings a public key and the wish for names; everything else in a certificate is decided here, so that no
request can become more than a host. The authority's key never leaves its file. Must not decide whose a name is.
"""

import secrets
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from vmorch.bus.keys import BadKey
from vmorch.bus.private import write_private
from vmorch.core.aggregates.certificate import Certificate, Revocation, is_address
from vmorch.core.errors import Rejected

KEY, CERTIFICATE = "ca-key.pem", "ca-cert.pem"
LIFETIME = timedelta(days=90)
AUTHORITY_LIFETIME = timedelta(days=20 * 365)
MAX_CSR = 8192
"""Characters of a certificate request; one with four names has less than a thousand."""

_SKEW = timedelta(minutes=10)
"""How far behind a host's clock may be without taking a new certificate for one of the future."""

_UNREADABLE = (
    ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, UnsupportedAlgorithm, InvalidSignature,
)  # fmt: skip

HostKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class Wish(Struct, frozen=True, kw_only=True):
    """What a certificate request asks for, proven to come from the holder of its key. `digest` is that of the key."""

    key: HostKey
    digest: str
    common_name: str
    names: tuple[str, ...]


class Authority:
    """Signs with one key. Whoever calls has decided that it may be signed."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, lifetime: timedelta) -> None:
        self._key = key
        self._certificate = certificate
        self.lifetime = lifetime

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the authority's own certificate."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def certificate(self) -> str:
        """What hosts trust, as PEM."""
        return _pem(self._certificate)

    def issue(self, wish: Wish, names: tuple[str, ...], now: datetime) -> tuple[Certificate, str]:
        """A certificate for the key of a wish with these names, the first of which is the host's own, and its PEM."""
        ends = min(now + self.lifetime, self._certificate.not_valid_after_utc)
        issuer = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        made = (
            x509.CertificateBuilder()
            .subject_name(_called(names[0]))
            .issuer_name(self._certificate.subject)
            .public_key(wish.key)
            # random, so that it says nothing and two servers never meet
            .serial_number(secrets.randbits(127) | 1 << 126)
            .not_valid_before(now - _SKEW)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            # libvirt refuses a certificate whose key cannot encipher, also one whose kind of key never does
            .add_extension(_usage(digital_signature=True, key_encipherment=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(wish.key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        issued = Certificate(
            serial=f"{made.serial_number:x}",
            fingerprint=made.fingerprint(hashes.SHA256()).hex(),
            key=wish.digest,
            names=names,
            expires=made.not_valid_after_utc,
        )
        return issued, _pem(made)

    def revoked(self, revocations: Iterable[Revocation], number: int, now: datetime) -> str:
        """The list of certificates that are to be trusted no more, as PEM. `number` never falls from one to the next.

        It is good for as long as a certificate is: a list that ran out would end every host's trust in every other
        just because the control plane was away.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - _SKEW)
            .next_update(now + self.lifetime)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        for each in sorted(revocations, key=lambda one: (one.at, one.serial)):
            entry = x509.RevokedCertificateBuilder().serial_number(int(each.serial, 16)).revocation_date(each.at)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def read_request(pem: str) -> Wish:
    """What a certificate request (PKCS #10, PEM) asks for. Raises Rejected `bad-csr`."""
    if len(pem) > MAX_CSR:
        raise Rejected("bad-csr", f"the certificate request exceeds {MAX_CSR} characters")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = _fit(request.public_key())
        proven = request.is_signature_valid
        called = [str(each.value) for each in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        names = _wanted(request)
    except _UNREADABLE as error:
        raise Rejected("bad-csr", f"the certificate request cannot be read: {error}") from error
    if not proven:
        raise Rejected("bad-csr", "the certificate request is not signed by its own key")
    if len(called) != 1 or len(request.subject.rdns) != 1:
        raise Rejected("bad-csr", "the subject of the certificate request must be a common name alone")
    digest = sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()
    return Wish(key=key, digest=digest, common_name=called[0], names=names)


def ensure_authority(directory: Path, cluster: str, now: datetime, lifetime: timedelta = LIFETIME) -> Authority:
    """The authority whose key and certificate are in `directory`, made at the first call and the same ever after.

    Raises BadKey if a file is not what it should be; it is never replaced.
    """
    path = directory / KEY
    if not path.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = ec.generate_private_key(ec.SECP256R1())
        text = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with suppress(FileExistsError):
            write_private(path, text, replace=False)
    key = _load_key(path)
    shown = directory / CERTIFICATE
    if not shown.exists():
        with suppress(FileExistsError):
            write_private(shown, _pem(_self_signed(key, cluster, now)).encode(), replace=False)
    try:
        certificate = x509.load_pem_x509_certificate(shown.read_bytes())
        ours = certificate.public_key() == key.public_key()
    except ValueError as error:
        raise BadKey(f"{shown} holds no certificate") from error
    if not ours:
        raise BadKey(f"{shown} is not the certificate of {path}")
    return Authority(key, certificate, lifetime)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.stat().st_mode & 0o077:
        raise BadKey(f"{path} may be read by others: it must have mode 0600")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKey(f"{path} holds no private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadKey(f"{path} holds another kind of key than an authority's")
    return key


def _self_signed(key: ec.EllipticCurvePrivateKey, cluster: str, now: datetime) -> x509.Certificate:
    name = _called(f"vmorch {cluster}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    kinds = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{kind: allowed.get(kind, False) for kind in kinds})


def _fit(key: object) -> HostKey:
    """The key, if it is one that libvirt and QEMU use and nobody breaks, nor spends our time with its size."""
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 4096:
        return key
    raise Rejected("bad-csr", "a host's key is P-256, P-384 or RSA of 2048 to 4096 bits")


def _wanted(request: x509.CertificateSigningRequest) -> tuple[str, ...]:
    names: list[str] = []
    for extension in request.extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            more = extension.oid.dotted_string
            raise Rejected("bad-csr", f"the certificate request asks for more than names: extension {more}")
        for general in extension.value:
            if not isinstance(general, x509.DNSName | x509.IPAddress):
                raise Rejected("bad-csr", "a certificate carries host names and addresses only")
            names.append(str(general.value))
    return tuple(names)


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ip_address(name)) if is_address(name) else x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
