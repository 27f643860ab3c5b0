"""libvirtd reads its certificates again only when nobody is half way in, and is never left closed."""

from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

import pytest

from hostagent import libvirtd_reload
from hostagent.libvirt_settings import PLACES, link
from hostagent.libvirtd_reload import reload_certificates


class Libvirtd:
    """What virt-admin says of a libvirtd, as 9.0 says it."""

    def __init__(self) -> None:
        self.limits = ("5000", "20")
        self.half_in: list[int] = []
        """How many are half way in at each look."""
        self.asked: list[str] = []
        self.fails = ""
        self.reloads: list[tuple[str, str]] = []

    def __call__(self, arguments: Sequence[str]) -> "CompletedProcess[str]":
        verb = arguments[0]
        self.asked.append(verb)
        if verb == self.fails:
            return CompletedProcess(arguments, 1, "", "error: no")
        out = ""
        match verb:
            case "server-clients-info":
                most, waiting = self.limits
                out = f"nclients_max        : {most}\nnclients            : 3\nnclients_unauth_max : {waiting}\n"
            case "server-clients-set":
                self.limits = (arguments[3], arguments[5])
            case "client-list":
                half = self.half_in.pop(0) if self.half_in else 0
                out = " Id   Transport   Connected since\n----\n 2    unix        2026-11-25 08:50:42+0000\n"
                out += " 7    tls         2026-11-25 08:52:26+0000\n"
                out += "".join(f" {8 + each}    tls         2026-11-25 08:52:26+0000\n" for each in range(half))
            case "client-info" if arguments[2] == "7":
                out = "id             : 7\ntls_x509_dname : CN=hv-02\n"
            case "client-info":
                return CompletedProcess(arguments, 1, "", "error: no identity")
            case "server-update-tls":
                self.reloads.append(self.limits)
        return CompletedProcess(arguments, 0, out, "")


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """The host's own certificates, and where libvirtd looks."""
    pki, root = tmp_path / "pki", tmp_path / "etc-pki"
    pki.mkdir()
    for _, name in PLACES.values():
        (pki / name).write_text("pem")
    link(root, pki)
    return pki, root


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirtd_reload, "_QUIET_WITHIN", 0.05)
    monkeypatch.setattr(libvirtd_reload, "_LOOK_EVERY", 0.001)


def test_it_is_told_behind_a_closed_door_that_is_opened_again(places: tuple[Path, Path]) -> None:
    libvirtd = Libvirtd()
    libvirtd.half_in = [2, 1, 0]
    assert reload_certificates(*places, run=libvirtd)
    assert libvirtd.reloads == [("1", "1")]
    assert libvirtd.limits == ("5000", "20")


def test_who_stands_in_the_door_is_sent_away_and_libvirtd_is_told_later(places: tuple[Path, Path]) -> None:
    libvirtd = Libvirtd()
    libvirtd.half_in = [1] * 10_000
    assert not reload_certificates(*places, run=libvirtd)
    assert libvirtd.reloads == []
    assert "client-disconnect" in libvirtd.asked
    assert libvirtd.limits == ("5000", "20")


@pytest.mark.parametrize("verb", ["client-list", "server-update-tls"])
def test_the_door_is_opened_again_whatever_goes_wrong(places: tuple[Path, Path], verb: str) -> None:
    libvirtd = Libvirtd()
    libvirtd.limits, libvirtd.fails = ("700", "30"), verb
    assert reload_certificates(*places, run=libvirtd)
    assert libvirtd.limits == ("700", "30")


def test_a_door_that_a_killed_agent_left_closed_is_opened(places: tuple[Path, Path]) -> None:
    libvirtd = Libvirtd()
    libvirtd.limits = ("1", "1")
    assert reload_certificates(*places, run=libvirtd)
    assert libvirtd.limits == ("5000", "20")


def test_a_libvirtd_with_somebody_else_s_certificates_is_left_alone(places: tuple[Path, Path]) -> None:
    pki, root = places
    (root / "CA/cacert.pem").unlink()
    libvirtd = Libvirtd()
    assert reload_certificates(pki, root, run=libvirtd)
    (root / "CA/cacert.pem").write_text("theirs")
    assert reload_certificates(pki, root, run=libvirtd)
    assert libvirtd.asked == []


def test_a_libvirtd_that_is_not_there_reads_them_when_it_starts(places: tuple[Path, Path]) -> None:
    def missing(arguments: Sequence[str]) -> "CompletedProcess[str]":
        raise FileNotFoundError("virt-admin")

    def silent(arguments: Sequence[str]) -> "CompletedProcess[str]":
        raise TimeoutExpired(list(arguments), 10)

    assert reload_certificates(*places, run=missing)
    assert reload_certificates(*places, run=silent)
