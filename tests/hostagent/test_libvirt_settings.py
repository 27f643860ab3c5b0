"""libvirt's own files: what is ours is put in once, and what an operator wrote stays."""

from pathlib import Path

import pytest

from hostagent.libvirt_settings import default_files, set_up_libvirt, taken, with_settings

SETTINGS = {"listen_tls": 1, "ca_file": "/etc/pki/CA/cacert.pem"}


def active(text: str) -> dict[str, str]:
    """What libvirt reads: of two lines for one setting the first."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key.strip(), value.strip())
    return found


@pytest.mark.parametrize(
    "before",
    [
        "",
        "\n\n",
        "listen_tls = 0\nmax_clients = 5000\n",
        '# comment\n  ca_file="/elsewhere"\nlisten_tls=0\n#listen_tls = 0\n\n\n',
        "max_clients = 5000",
    ],
)
def test_the_settings_are_in_force_and_everything_else_stays(before: str) -> None:
    after = with_settings(before, SETTINGS)
    others = {key: value for key, value in active(before).items() if key not in SETTINGS}
    assert active(after) == {**others, "listen_tls": "1", "ca_file": '"/etc/pki/CA/cacert.pem"'}
    assert all(line in after for line in before.splitlines())
    assert with_settings(after, SETTINGS) == after
    changed = with_settings(after, {**SETTINGS, "listen_tls": 0})
    assert active(changed)["listen_tls"] == "0"
    assert changed.count("vmorch: begin") == 1


def test_a_default_gives_way_to_what_the_operator_set() -> None:
    defaults = {"default_tls_x509_cert_dir": "/ours", "default_tls_x509_verify": 1}
    after = with_settings('default_tls_x509_cert_dir = "/theirs"\n', SETTINGS, defaults)
    assert active(after)["default_tls_x509_cert_dir"] == '"/theirs"'
    assert active(after)["default_tls_x509_verify"] == "1"
    assert with_settings(after, SETTINGS, defaults) == after


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Path]:
    made = (tmp_path / "host-pki", tmp_path / "libvirt", tmp_path / "etc-pki")
    for place in made:
        place.mkdir()
    return made


def test_libvirtd_finds_the_host_s_files_where_it_looks_by_itself(places: tuple[Path, Path, Path]) -> None:
    pki, libvirt, root = places
    assert len(list(set_up_libvirt(pki, libvirt, root, write=False, clear=False))) == 2
    assert not list(libvirt.iterdir()) + list(root.iterdir())
    said = list(set_up_libvirt(pki, libvirt, root, write=True, clear=False))
    assert [line.endswith(": set") for line in said] == [True, True]
    for path in default_files(root).values():
        assert path.readlink().parent == pki
    libvirtd, qemu = (active((libvirt / name).read_text()) for name in ("libvirtd.conf", "qemu.conf"))
    assert libvirtd["listen_tls"] == "1"
    assert libvirtd["tls_no_verify_certificate"] == "0"
    assert libvirtd["crl_file"] == f'"{root}/CA/cacrl.pem"'
    assert (qemu["migrate_tls_x509_verify"], qemu["migrate_tls_force"]) == ("1", "1")
    assert qemu["migrate_tls_x509_cert_dir"] == f'"{pki}"'
    assert all(line.endswith("as it should be") for line in set_up_libvirt(pki, libvirt, root, write=True, clear=False))
    list(set_up_libvirt(pki, libvirt, root, write=True, clear=True))
    assert active((libvirt / "qemu.conf").read_text())["migrate_tls_force"] == "0"


def test_somebody_else_s_certificates_stay_where_they_are(places: tuple[Path, Path, Path]) -> None:
    pki, libvirt, root = places
    (root / "CA").mkdir()
    (root / "CA/cacert.pem").write_text("precious")
    assert taken(root, pki) == [root / "CA/cacert.pem"]
    said = list(set_up_libvirt(pki, libvirt, root, write=True, clear=False))
    assert "restart libvirtd after each renewal" in said[0]
    assert (root / "CA/cacert.pem").read_text() == "precious"
    assert active((libvirt / "libvirtd.conf").read_text())["ca_file"] == f'"{pki}/cacert.pem"'
    assert not (root / "libvirt").exists()
