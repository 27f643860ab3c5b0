"""Enrolment: what is asked, what is kept, and what is never overwritten; and what the agent's commands say."""

import socket
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from front_desk import FrontDesk, open_desk

from hostagent import identity as files
from hostagent import sdnotify
from hostagent.config import BadConfig, Config, load_config
from hostagent.credentials import expires
from hostagent.enrolment import EnrolmentError, enroll, renew_credentials
from hostagent.main import main
from vmorch.bus import keys
from vmorch.bus.credentials import ensure_keys


@pytest.fixture
def desk(tmp_path: Path) -> FrontDesk:
    control = ensure_keys(tmp_path / "control")
    return FrontDesk(control, "lab", "nats://127.0.0.1:4222", {"t1", "t2"}, tmp_path / "authority")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_an_enrolled_host_holds_everything_it_needs_in_private_files(desk: FrontDesk, state: Path) -> None:
    with open_desk(desk) as url:
        identity = enroll(url, "t1", state, name="rack1", machine_id="m")
    assert desk.asked == [{"token": "t1", "key": identity.key, "machine_id": "m", "name": "rack1"}]
    assert files.load_identity(state) == identity
    assert (identity.host, identity.name, identity.cluster, identity.server_url) == ("id-1", "rack1", "lab", url)
    assert identity.server_key == desk.keys.server.public
    assert keys.load(state / files.KEY, "user").public == identity.key
    assert files.load_credentials(state).count(".") == 2
    for name in (files.IDENTITY, files.CREDENTIALS, files.KEY):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_host_enrols_over_a_unix_socket_too(desk: FrontDesk, state: Path, tmp_path: Path) -> None:
    with open_desk(desk, tmp_path / "api.sock") as url:
        assert enroll(url, "t1", state, machine_id="m").server_url == f"unix:{tmp_path / 'api.sock'}"


def test_an_identity_is_replaced_only_by_force_and_its_journal_set_aside(desk: FrontDesk, state: Path) -> None:
    with open_desk(desk) as url:
        first = enroll(url, "t1", state, machine_id="m")
        (state / files.JOURNAL).write_text("journal")
        with pytest.raises(EnrolmentError, match="--force") as refused:
            enroll(url, "t2", state, machine_id="m")
        assert refused.value.code == "already-enrolled"
        assert desk.tokens == {"t2"}
        second = enroll(url, "t2", state, machine_id="m", force=True)
    assert second.host != first.host
    assert second.key == first.key
    assert not (state / files.JOURNAL).exists()
    assert (state / f"before-id-1.{files.JOURNAL}").read_text() == "journal"


def test_a_refused_token_leaves_no_identity(desk: FrontDesk, state: Path) -> None:
    with open_desk(desk) as url, pytest.raises(EnrolmentError, match="not valid") as refused:
        enroll(url, "wrong", state, machine_id="m")
    assert refused.value.code == "bad-token"
    with pytest.raises(files.NotEnrolled):
        files.load_identity(state)


def test_errors_of_enrolment_have_codes(desk: FrontDesk, state: Path) -> None:
    def code(url: str, machine: str = "m") -> str:
        with pytest.raises(EnrolmentError) as refused:
            enroll(url, "t1", state, machine_id=machine)
        return refused.value.code

    assert code("ftp://host") == "bad-url"
    assert code("http://127.0.0.1:1") == "server-unreachable"
    assert code("unix:/does/not/exist") == "server-unreachable"
    assert code("http://127.0.0.1:1", machine="") == "no-machine-id"
    desk.broken = b"<html>"
    with open_desk(desk) as url:
        assert code(url) == "unexpected-answer"


def test_expired_credentials_are_renewed_with_the_host_key(desk: FrontDesk, state: Path) -> None:
    desk.lifetime = timedelta(seconds=1)
    with open_desk(desk) as url:
        identity = enroll(url, "t1", state, machine_id="m")
        old = expires(files.load_credentials(state))
        desk.lifetime = timedelta(hours=1)
        renewed = renew_credentials(identity, keys.load(state / files.KEY, "user"), old)
    assert expires(renewed) > old + 3000
    assert expires("no jwt") == expires("a.!.c") == float("inf")


def test_settings_have_defaults_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[libvirt]\naccel = "tcg"\n[storage]\nshared_dir = "/srv/vms"\n')
    config = load_config(path)
    assert config.libvirt.accel == "tcg"
    assert config.storage.shared_dir == "/srv/vms"
    assert config.agent == Config().agent
    path.write_text("[libvirt]\nuril = 1\n")
    with pytest.raises(BadConfig, match="uril"):
        load_config(path)
    with pytest.raises(BadConfig, match="does not exist"):
        load_config(tmp_path / "none.toml")


def test_the_commands_explain_themselves_and_refuse_with_codes(tmp_path: Path, desk: FrontDesk) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'[agent]\nstate_dir = "{tmp_path / "state"}"\n[storage]\nlocal_dir = "{tmp_path}"\n')
    run = CliRunner().invoke
    for command in ("enroll", "run", "check"):
        shown = run(main, [command, "--help"])
        assert shown.exit_code == 0
        assert "Example" in shown.output
    assert "[not-enrolled]" in run(main, ["run", "--config", str(path)]).output
    with open_desk(desk) as url:
        missing = run(main, ["enroll", url, "--config", str(path)])
        assert "[no-token]" in missing.output
        enrolled = run(main, ["enroll", url, "--token-file", "-", "--config", str(path)], input="t1\n")
        assert enrolled.exit_code == 0, enrolled.output
        again = run(main, ["enroll", url, "--token", "t2", "--config", str(path)])
        assert (again.exit_code, "[already-enrolled]" in again.output) == (1, True)


def test_systemd_hears_what_it_asked_for(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        sdnotify.notify("READY=1", {"NOTIFY_SOCKET": address})
        sdnotify.notify("READY=2", {})
        listening.settimeout(5)
        assert listening.recv(100) == b"READY=1"
    assert sdnotify.watchdog_seconds({"WATCHDOG_USEC": "20000000"}) == 20.0
    assert sdnotify.watchdog_seconds({}) is None
    assert sdnotify.watchdog_seconds({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}) is None
