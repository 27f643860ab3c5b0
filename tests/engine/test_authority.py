"""The certificate authority: what it makes of a request, and every trick of a request that it refuses."""

import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vmorch.bus.keys import BadKey
from vmorch.core.aggregates.certificate import Certificate, revoke
from vmorch.core.errors import Rejected
from vmorch.engine import authority as authorities
from vmorch.engine.authority import MAX_CSR, Authority, ensure_authority, read_request

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return ensure_authority(tmp_path / "keys", "lab", NOW)


def builder(*names: str, subject: str = "hv-01") -> x509.CertificateSigningRequestBuilder:
    made = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    )
    wanted = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    return made.add_extension(wanted, critical=False) if names else made


def signed(made: x509.CertificateSigningRequestBuilder, key: object = None) -> str:
    own = key or ec.generate_private_key(ec.SECP256R1())
    algorithm = None if isinstance(own, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return made.sign(own, algorithm).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


def refused(pem: str) -> str:
    with pytest.raises(Rejected) as refusal:
        read_request(pem)
    return refusal.value.code


def test_a_certificate_is_what_libvirt_and_qemu_ask_of_one(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued, pem = authority.issue(read_request(signed(builder(), key)), ("hv-01", "10.0.0.1", "hv-01.rack"), NOW)
    made, trusted = (x509.load_pem_x509_certificate(text.encode()) for text in (pem, authority.certificate))
    made.verify_directly_issued_by(trusted)
    assert made.public_key() == key.public_key()
    assert made.subject.rfc4514_string() == "CN=hv-01"
    assert made.not_valid_before_utc == NOW - timedelta(minutes=10)
    assert made.not_valid_after_utc == NOW + timedelta(days=90)
    usage = made.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    # libvirt 9.0 does not start with a certificate without the second
    assert (usage.value.digital_signature, usage.value.key_encipherment) == (True, True)
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    basic = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    extended = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hv-01", "hv-01.rack"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("10.0.0.1")]
    assert issued.serial == f"{made.serial_number:x}"
    assert issued.fingerprint == made.fingerprint(hashes.SHA256()).hex()
    assert (issued.names, issued.expires) == (("hv-01", "10.0.0.1", "hv-01.rack"), made.not_valid_after_utc)


def test_the_authority_is_made_once_and_its_key_stays_private(tmp_path: Path) -> None:
    place = tmp_path / "keys"
    first = ensure_authority(place, "lab", NOW)
    assert ensure_authority(place, "other", NOW + timedelta(days=1)).certificate == first.certificate
    for name in (authorities.KEY, authorities.CERTIFICATE):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
    trusted = x509.load_pem_x509_certificate(first.certificate.encode())
    basic = trusted.extensions.get_extension_for_class(x509.BasicConstraints)
    # it signs hosts and no other authority
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = trusted.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert trusted.not_valid_after_utc - NOW > timedelta(days=19 * 365)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (authorities.KEY, lambda path: path.write_text("nothing")),
        (authorities.KEY, lambda path: path.chmod(0o640)),
        (authorities.CERTIFICATE, lambda path: path.write_text("nothing")),
    ],
)
def test_a_damaged_authority_is_refused_and_never_replaced(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    ensure_authority(tmp_path, "lab", NOW)
    damage(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(BadKey) as refusal:
        ensure_authority(tmp_path, "lab", NOW)
    assert "BEGIN" not in str(refusal.value)
    assert (tmp_path / name).read_bytes() == before


def test_another_authority_s_certificate_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ensure_authority(tmp_path / name, name, NOW)
    (tmp_path / "two" / authorities.CERTIFICATE).replace(tmp_path / "one" / authorities.CERTIFICATE)
    with pytest.raises(BadKey, match="not the certificate"):
        ensure_authority(tmp_path / "one", "one", NOW)


def test_a_certificate_does_not_outlive_its_authority(authority: Authority) -> None:
    late = NOW + authorities.AUTHORITY_LIFETIME - timedelta(days=1)
    issued, _ = authority.issue(read_request(signed(builder())), ("hv-01",), late)
    assert issued.expires == late + timedelta(days=1)


def test_a_request_is_read_for_its_key_and_names_only(authority: Authority) -> None:
    wish = read_request(signed(builder("hv-01.rack")))
    assert (wish.common_name, wish.names) == ("hv-01", ("hv-01.rack",))
    made = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hv-01")])
    )
    addressed = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("fd00::1"))]), False)
    assert read_request(signed(addressed)).names == ("fd00::1",)
    assert read_request(signed(builder(), rsa.generate_private_key(65537, 2048))).digest != wish.digest


CA = x509.BasicConstraints(ca=True, path_length=None)
USAGE = x509.KeyUsage(True, False, True, False, False, True, True, False, False)


@pytest.mark.parametrize(
    "made",
    [
        builder().add_extension(CA, critical=True),
        builder("hv-01").add_extension(CA, critical=False),
        builder().add_extension(USAGE, critical=True),
        builder().add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False),
        builder().add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), False),
        builder().add_extension(x509.SubjectAlternativeName([x509.RFC822Name("a@b.example")]), False),
        builder().add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://lab/hv-02")]), False
        ),
        x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])),
        x509.CertificateSigningRequestBuilder().subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, "hv-01"),
                    x509.NameAttribute(NameOID.COMMON_NAME, "hv-02"),
                ]
            )
        ),
        x509.CertificateSigningRequestBuilder().subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "vmorch"),
                    x509.NameAttribute(NameOID.COMMON_NAME, "hv-01"),
                ]
            )
        ),
    ],
)
def test_a_request_for_more_than_names_is_refused(made: x509.CertificateSigningRequestBuilder) -> None:
    assert refused(signed(made)) == "bad-csr"


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP192R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["rsa 1024", "p-192", "p-521", "ed25519"],
)
def test_a_weak_or_unusual_key_is_refused(key: object) -> None:
    assert refused(signed(builder(), key)) == "bad-csr"


def test_a_request_by_another_key_than_its_own_is_refused() -> None:
    """Somebody else's public key, signed by the key at hand: the holder would be certified as us, and we as he."""
    der = x509.load_pem_x509_csr(signed(builder()).encode()).public_bytes(Encoding.DER)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    own = x509.load_der_x509_csr(der).public_key()
    assert isinstance(own, ec.EllipticCurvePublicKey)
    point = (Encoding.X962, authorities.serialization.PublicFormat.UncompressedPoint)
    swapped = der.replace(own.public_bytes(*point), other.public_bytes(*point))
    assert swapped != der
    pem = x509.load_der_x509_csr(swapped).public_bytes(Encoding.PEM).decode()
    assert refused(pem) == "bad-csr"


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "hello",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "-----BEGIN CERTIFICATE REQUEST-----\n\u00fc\n-----END CERTIFICATE REQUEST-----\n",
        signed(builder())[:-60],
        signed(builder(*(f"host-{index}.{'x' * 60}.example" for index in range(200)))),
        "x" * (MAX_CSR + 1),
    ],
    ids=["empty", "no pem", "no der", "not ascii", "cut", "huge", "long"],
)
def test_what_is_no_request_or_too_long_is_refused(pem: str) -> None:
    assert refused(pem) == "bad-csr"


def test_revoked_certificates_are_listed_and_the_list_outlasts_an_outage(authority: Authority) -> None:
    issued = [authority.issue(read_request(signed(builder())), ("hv-01",), NOW)[0] for _ in range(2)]
    at = NOW + timedelta(days=1)
    text = authority.revoked(revoke(issued, at), 7, at)
    listed = x509.load_pem_x509_crl(text.encode())
    key = x509.load_pem_x509_certificate(authority.certificate.encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert listed.is_signature_valid(key)
    assert {f"{each.serial_number:x}" for each in listed} == {each.serial for each in issued}
    assert listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7
    assert listed.next_update_utc is not None
    assert listed.next_update_utc - at == authority.lifetime
    assert not list(x509.load_pem_x509_crl(authority.revoked((), 0, NOW).encode()))


def test_what_is_recorded_of_a_certificate_holds_no_key() -> None:
    assert set(Certificate.__struct_fields__) == {"serial", "fingerprint", "key", "names", "expires"}
