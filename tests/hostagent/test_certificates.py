"""The host's certificate: asked for with a new key, stored all at once, renewed in time, and never from a stranger."""

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from front_desk import FrontDesk, open_desk
from msgspec.structs import replace
from scripted import until

from hostagent import pki
from hostagent.certificates import Certificates, Desk, obtain, own_address, why_renew
from hostagent.config import Config, MigrationSection
from hostagent.effects import Effects, real_effects
from hostagent.enrolment import EnrolmentError, enroll
from hostagent.identity import KEY as HOST_KEY
from hostagent.identity import Identity
from hostagent.main import main
from hostagent.pki import NAMES, BadPki, Held, OtherAuthority, Store
from vmorch.bus import keys
from vmorch.bus.credentials import ensure_keys
from vmorch.engine.authority import ensure_authority

NAMED = ("rack1", "10.0.0.1")


@pytest.fixture
def front(tmp_path: Path) -> FrontDesk:
    return FrontDesk(ensure_keys(tmp_path / "control"), "lab", "nats://x", {"t1"}, tmp_path / "authority")


@pytest.fixture
def url(front: FrontDesk) -> Iterator[str]:
    with open_desk(front) as url:
        yield url


@pytest.fixture
def identity(url: str, tmp_path: Path) -> Identity:
    return enroll(url, "t1", tmp_path / "state", name="rack1", machine_id="m")


@pytest.fixture
def desk(identity: Identity, tmp_path: Path) -> Desk:
    return Desk(identity, keys.load(tmp_path / "state" / HOST_KEY, "user"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "pki")


def read(store: Store, name: str) -> bytes:
    return (store.directory / name).read_bytes()


def everything(store: Store) -> dict[str, bytes]:
    return {name: read(store, name) for name in NAMES}


def test_a_new_host_holds_what_libvirt_and_qemu_look_for(store: Store, desk: Desk, front: FrontDesk) -> None:
    held = obtain(store, desk, NAMED)
    assert held == store.held()
    assert held.names == NAMED
    [wish] = front.wishes
    assert wish.common_name == "rack1"
    assert set(wish.names) == set(NAMED)
    for one, other in (("ca-cert.pem", "cacert.pem"), ("server-key.pem", "clientkey.pem"), ("ca-crl.pem", "cacrl.pem")):
        assert read(store, one) == read(store, other)
    own, trusted = (x509.load_pem_x509_certificate(read(store, name)) for name in ("server-cert.pem", "ca-cert.pem"))
    own.verify_directly_issued_by(trusted)
    for place in (store.directory, *store.directory.rglob("*")):
        mode = stat.S_IMODE(place.lstat().st_mode)
        assert place.is_symlink() or mode == (0o700 if place.is_dir() else 0o600), place


def test_qemu_s_group_may_read_if_it_is_named_and_nobody_else(tmp_path: Path, desk: Desk) -> None:
    import grp

    group = grp.getgrgid(os.getgid()).gr_name
    store = Store(tmp_path / "pki", group)
    obtain(store, desk, NAMED)
    for place in (store.directory, *store.directory.rglob("*")):
        mode = stat.S_IMODE(place.lstat().st_mode)
        assert place.is_symlink() or mode == (0o750 if place.is_dir() else 0o640), place
    with pytest.raises(BadPki) as refusal:
        Store(tmp_path / "other", "no-such-group-here").draft()
    assert refusal.value.code == "no-such-group"


def test_each_certificate_is_for_a_new_key_and_all_files_change_at_once(store: Store, desk: Desk) -> None:
    obtain(store, desk, NAMED)
    before, place = everything(store), (store.directory / "current").resolve()
    obtain(store, desk, NAMED)
    after = everything(store)
    assert all(before[name] != after[name] for name in NAMES if not name.startswith("ca"))
    # the one before is still there for whoever was reading it, the one before that is not
    assert (place / pki.KEY).exists()
    obtain(store, desk, NAMED)
    assert not place.exists()
    assert store.held() is not None


def test_what_goes_wrong_on_the_way_leaves_the_old_one_in_use(
    store: Store, desk: Desk, front: FrontDesk, tmp_path: Path
) -> None:
    held = obtain(store, desk, NAMED)
    before = everything(store)
    front.certifies = False
    with pytest.raises(EnrolmentError) as refusal:
        obtain(store, desk, NAMED)
    assert refusal.value.code == "log-unavailable"
    front.certifies = True
    draft = store.draft()
    issued = desk.certify(draft.request("rack1", NAMED))
    other = store.draft()
    stranger = ensure_authority(tmp_path / "stranger", "lab", datetime.now(UTC))
    crl = stranger.revoked((), 1, datetime.now(UTC))
    for certificate, authority, revoked in (
        (issued.certificate, issued.authority, issued.revoked),
        ("nothing", issued.authority, issued.revoked),
        (issued.certificate, stranger.certificate, issued.revoked),
        (issued.certificate, issued.authority, crl),
    ):
        with pytest.raises((BadPki, FileNotFoundError)):
            store.take(other, certificate, authority, revoked)
    assert (store.held(), everything(store)) == (held, before)


def test_an_answer_that_the_control_plane_did_not_seal_is_refused(
    store: Store, desk: Desk, front: FrontDesk, tmp_path: Path
) -> None:
    """The API may be reached in clear: whoever sits between must not become the authority."""
    front.keys = replace(front.keys, server=keys.create("user"))
    front.authority = ensure_authority(tmp_path / "stranger", "lab", datetime.now(UTC))
    with pytest.raises(EnrolmentError) as refusal:
        obtain(store, desk, NAMED)
    assert refusal.value.code == "unexpected-answer"
    assert store.held() is None


def test_files_of_somebody_else_are_never_replaced(store: Store, desk: Desk, front: FrontDesk) -> None:
    store.directory.mkdir()
    (store.directory / "server-key.pem").write_text("precious")
    with pytest.raises(BadPki) as refusal:
        obtain(store, desk, NAMED)
    assert refusal.value.code == "not-ours"
    assert read(store, "server-key.pem") == b"precious"
    assert front.wishes == []


def test_leftovers_of_a_killed_agent_are_cleared_away(store: Store, desk: Desk) -> None:
    store.draft()
    (store.directory / ".new-cacert.pem").symlink_to("nowhere")
    obtain(store, desk, NAMED)
    assert list(store.directory.glob(".new-*")) == []


def held(days: float, names: tuple[str, ...] = NAMED) -> Held:
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    return Held(fingerprint="f", names=names, begins=begins, expires=begins + timedelta(days=days))


def test_a_certificate_is_renewed_when_a_third_of_it_is_left_or_a_name_is_missing() -> None:
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    assert why_renew(None, NAMED, begins) == "there is none"
    assert why_renew(held(90), NAMED, begins + timedelta(days=59)) == ""
    assert "ends" in why_renew(held(90), NAMED, begins + timedelta(days=60))
    assert "ends" in why_renew(held(90), NAMED, begins + timedelta(days=100))
    assert "10.0.0.2" in why_renew(held(90), (*NAMED, "10.0.0.2"), begins)


class Watched:
    """Certificates that are looked after, with a clock of their own."""

    def __init__(self, store: Store, desk: Desk) -> None:
        self.moved = timedelta(0)
        self.changes = 0
        self.heard = True
        effects: Effects = replace(real_effects(), wall=lambda: (datetime.now(UTC) + self.moved).timestamp())
        self.certificates = Certificates(store, desk, NAMED, effects, self._changed, every=0.01)

    def _changed(self) -> bool:
        self.changes += 1
        return self.heard


def test_the_agent_renews_by_itself_and_only_in_time(store: Store, desk: Desk, front: FrontDesk) -> None:
    watched = Watched(store, desk)
    assert watched.certificates.look()
    first = store.held()
    assert not watched.certificates.look()
    assert (store.held(), watched.changes, len(front.wishes)) == (first, 1, 1)
    watched.moved = timedelta(days=61)
    front.now = lambda: datetime.now(UTC) + watched.moved
    assert not watched.certificates.look()
    assert (watched.changes, len(front.wishes)) == (2, 2)
    second = store.held()
    assert first is not None
    assert second is not None
    assert second.expires - first.expires == pytest.approx(timedelta(days=61), abs=timedelta(seconds=5))


def test_an_agent_that_starts_tells_libvirtd_what_an_earlier_one_may_not_have(store: Store, desk: Desk) -> None:
    obtain(store, desk, NAMED)
    watched = Watched(store, desk)
    assert not watched.certificates.look()
    assert watched.changes == 1
    assert not watched.certificates.look()
    assert watched.changes == 1


def test_libvirtd_is_told_again_until_it_has_heard(store: Store, desk: Desk) -> None:
    watched = Watched(store, desk)
    watched.heard = False
    for _ in range(3):
        watched.certificates.look()
    assert watched.changes == 3
    watched.heard = True
    watched.certificates.look()
    watched.certificates.look()
    assert watched.changes == 4


def test_a_damaged_certificate_is_replaced(store: Store, desk: Desk) -> None:
    watched = Watched(store, desk)
    watched.certificates.look()
    (store.directory / "current" / pki.CERTIFICATE).write_text("damaged")
    watched.certificates.look()
    assert store.held() is not None


def test_a_revoked_certificate_is_known_at_the_next_look(store: Store, desk: Desk, front: FrontDesk) -> None:
    watched = Watched(store, desk)
    watched.certificates.look()
    unchanged = read(store, "cacrl.pem")
    watched.certificates.look()
    assert (read(store, "cacrl.pem"), watched.changes) == (unchanged, 1)
    front.revoked = list(front.certificates)
    watched.certificates.look()
    [listed] = x509.load_pem_x509_crl(read(store, "ca-crl.pem"))
    assert (f"{listed.serial_number:x}", watched.changes) == (front.certificates[0].serial, 2)
    # an older list, without it, does not make it good again
    old = x509.load_pem_x509_crl(unchanged).public_bytes(pki.Encoding.PEM).decode()
    assert not store.renew_revoked(old)
    # a list that says nothing new is replaced only when the one at hand will not be good for long
    assert not store.renew_revoked(front.revoked_list())
    front.now = lambda: datetime.now(UTC) + timedelta(days=40)
    assert store.renew_revoked(front.revoked_list())


def test_a_stranger_s_list_is_not_taken(store: Store, desk: Desk, front: FrontDesk, tmp_path: Path) -> None:
    watched = Watched(store, desk)
    watched.certificates.look()
    before, ours = everything(store), front.keys
    front.authority = ensure_authority(tmp_path / "stranger", "lab", datetime.now(UTC))
    front.keys = replace(ours, server=keys.create("user"))
    with pytest.raises(EnrolmentError):
        watched.certificates.look()
    assert everything(store) == before
    with pytest.raises(OtherAuthority):
        store.renew_revoked(front.revoked_list())
    assert everything(store) == before


def test_a_new_authority_of_the_cluster_brings_a_new_certificate(
    store: Store, desk: Desk, front: FrontDesk, tmp_path: Path
) -> None:
    watched = Watched(store, desk)
    watched.certificates.look()
    front.authority = ensure_authority(tmp_path / "new", "lab", datetime.now(UTC))
    watched.certificates.look()
    assert read(store, "cacert.pem").decode() == front.authority.certificate
    watched.certificates.look()
    assert len(front.wishes) == 2


def test_the_agent_asks_until_it_has_one_and_says_so_once(store: Store, desk: Desk, front: FrontDesk) -> None:
    async def scenario() -> None:
        told: list[int] = []
        keeping = asyncio.create_task(watched.certificates.keep(lambda: told.append(1)))
        try:
            await until(lambda: (store.directory / "cacert.pem").exists())
            await until(lambda: front.revocations > 4)
            assert told == [1]
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    watched = Watched(store, desk)
    asyncio.run(scenario())
    assert len(front.wishes) == 1


def test_the_host_s_address_is_what_was_set_or_what_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_address(Config(migration=MigrationSection(address="HV-01.example"))) == "hv-01.example"
    assert own_address(Config(migration=MigrationSection(address="FD00:0:0::1"))) == "fd00::1"
    monkeypatch.setattr("socket.gethostname", lambda: "HV-01.rack.example")
    assert own_address(Config()) == "hv-01.rack.example"
    monkeypatch.setattr("socket.gethostname", lambda: "hv-01")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "localhost.localdomain", ())])
    assert own_address(Config()) == "hv-01"
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "hv-01.example", ())])
    assert own_address(Config()) == "hv-01.example"


def test_enrolling_brings_the_certificate_and_check_shows_it(url: str, front: FrontDesk, tmp_path: Path) -> None:
    settings = tmp_path / "agent.toml"
    state = tmp_path / "agent"
    settings.write_text(
        f'[agent]\nstate_dir = "{state}"\n[storage]\nlocal_dir = "{tmp_path}"\n'
        f'[migration]\naddress = "127.0.0.1"\n[libvirt]\nuri = "qemu+unix:///system?socket={tmp_path}/nobody"\n'
    )
    run = CliRunner().invoke
    options = ["--config", str(settings)]
    enrolled = run(main, ["enroll", url, "--token-file", "-", "--name", "rack1", *options], input="t1\n")
    assert enrolled.exit_code == 0, enrolled.output
    assert f"certificate of rack1, 127.0.0.1 in {state}/pki" in enrolled.output
    shown = run(main, ["check", *options]).output
    assert "ok    certificate: rack1, 127.0.0.1, until" in shown
    assert "FAIL  libvirt for other hosts: 127.0.0.1:16514" in shown
    (state / "pki/current/cert.pem").write_text("damaged")
    assert "FAIL  certificate: " in run(main, ["check", *options]).output


def test_a_host_without_a_certificate_is_enrolled_all_the_same(url: str, front: FrontDesk, tmp_path: Path) -> None:
    settings = tmp_path / "agent.toml"
    settings.write_text(f'[agent]\nstate_dir = "{tmp_path}/agent"\n[storage]\nlocal_dir = "{tmp_path}"\n')
    front.certifies = False
    run, options = CliRunner().invoke, ["--config", str(settings)]
    enrolled = run(main, ["enroll", url, "--token", "t1", "--name", "rack1", *options])
    assert enrolled.exit_code == 0, enrolled.output
    assert "no certificate yet" in enrolled.output
    assert "FAIL  certificate: " in run(main, ["check", *options]).output
    refused = run(main, ["setup-libvirt", "--write", *options, "--libvirt-dir", str(tmp_path)])
    assert "[no-certificate]" in refused.output
