"""Keys and credentials of the bus, without a broker."""

import json
from base64 import urlsafe_b64decode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vmorch.bus import keys
from vmorch.bus.credentials import (
    account_jwts,
    ensure_keys,
    host_credentials,
    nats_config,
    operator_jwt,
    server_credentials,
)
from vmorch.bus.keys import BadKey, BadSignature, KeyPair
from vmorch.core.ids import HostId
from vmorch.wire.envelopes import Forged, Heartbeat, seal, unseal

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
H1 = HostId("h1")


def claims(jwt: str) -> dict[str, Any]:
    header, body, signature = jwt.split(".")
    found: dict[str, Any] = json.loads(decoded(body))
    keys.verifier(found["iss"]).verify(f"{header}.{body}".encode(), decoded(signature))
    return found


def decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize(("kind", "letter"), [("operator", "O"), ("account", "A"), ("user", "U")])
def test_a_key_signs_what_its_public_key_verifies(kind: keys.Kind, letter: str) -> None:
    pair = keys.create(kind)
    assert pair.public.startswith(letter)
    verifier = keys.verifier(pair.public)
    assert verifier.kind == kind
    assert verifier.verify(b"said", pair.sign(b"said"))


def test_a_wrong_signature_is_refused() -> None:
    pair, other = keys.create("user"), keys.create("user")
    verifier = keys.verifier(pair.public)
    for signature in (other.sign(b"said"), pair.sign(b"unsaid"), b"", b"short", pair.sign(b"said")[:-1]):
        with pytest.raises(BadSignature):
            verifier.verify(b"said", signature)


def test_an_envelope_sealed_with_another_key_is_forged() -> None:
    pair, other = keys.create("user"), keys.create("user")
    beat = Heartbeat(host=H1, session="s", sequence=1)  # type: ignore[arg-type]  # a plain string will do here
    assert unseal(seal(beat, pair), Heartbeat, keys.verifier(pair.public)) == beat
    with pytest.raises(Forged):
        unseal(seal(beat, other), Heartbeat, keys.verifier(pair.public))


def test_texts_that_are_no_public_keys_are_refused() -> None:
    public = keys.create("user").public
    swapped = public[:20] + ("A" if public[20] != "A" else "B") + public[21:]
    seed_of_server = "NAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    for text in ("", "U", public[:-1], public + "A", public.lower(), swapped, "ü" * 56, seed_of_server):
        with pytest.raises(BadKey):
            keys.verifier(text)


def test_texts_that_are_no_seeds_are_refused_without_being_repeated() -> None:
    for text in ("", "SU", "SUAN" + "A" * 54, keys.create("user").public, "ü"):
        with pytest.raises(BadKey) as refused:
            KeyPair(text)
        assert not text or text not in str(refused.value)


def test_a_seed_with_a_changed_letter_is_refused(tmp_path: Path) -> None:
    keys.create("user").save(tmp_path / "seed")
    seed = (tmp_path / "seed").read_text().strip()
    for place in range(4, len(seed)):
        changed = seed[:place] + ("A" if seed[place] != "A" else "B") + seed[place + 1 :]
        with pytest.raises(BadKey):
            KeyPair(changed)


def test_a_pair_shows_its_public_key_only(tmp_path: Path) -> None:
    pair = keys.create("user")
    pair.save(tmp_path / "seed")
    assert (tmp_path / "seed").read_text().strip() not in repr(pair) + str(pair)


def test_a_saved_seed_is_private_whole_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "host.nk"
    pair = keys.create("user")
    pair.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    with pytest.raises(FileExistsError):
        keys.create("user").save(path)
    assert keys.load(path, "user").public == pair.public
    assert list(path.parent.iterdir()) == [path]


def test_a_seed_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "host.nk"
    keys.create("user").save(path)
    path.chmod(0o640)
    with pytest.raises(BadKey):
        keys.load(path, "user")


def test_a_seed_of_another_kind_or_no_seed_is_refused(tmp_path: Path) -> None:
    keys.create("user").save(tmp_path / "user.nk")
    with pytest.raises(BadKey):
        keys.load(tmp_path / "user.nk", "operator")
    (tmp_path / "user.nk").write_text("half a se")
    with pytest.raises(BadKey):
        keys.load(tmp_path / "user.nk", "user")
    with pytest.raises(FileNotFoundError):
        keys.load(tmp_path / "none.nk", "user")


def test_the_control_planes_keys_are_made_once(tmp_path: Path) -> None:
    def publics(_: int) -> tuple[str, ...]:
        made = ensure_keys(tmp_path)
        return tuple(getattr(made, name).public for name in made.__struct_fields__)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(publics, range(8)))) == 1
    assert len(set(publics(0))) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "account.nk",
        "log.nk",
        "operator.nk",
        "publisher.nk",
        "server.nk",
        "system.nk",
    ]


def test_a_hosts_credential_names_its_key_its_rights_and_its_end(tmp_path: Path) -> None:
    control, host = ensure_keys(tmp_path), keys.create("user")
    found = claims(host_credentials(control, "c", H1, host.public, NOW, HOUR))
    assert (found["iss"], found["sub"]) == (control.account.public, host.public)
    assert found["exp"] - found["iat"] == 3600
    assert found["nats"]["pub"] == {
        "allow": ["vmorch.c.host.h1.report", "vmorch.c.host.h1.heartbeat", "vmorch.c.host.h1.telemetry.*"]
    }
    assert found["nats"]["sub"] == {"allow": ["vmorch.c.host.h1.command", "_INBOX_host_h1.>"]}
    assert found["nats"]["resp"] == {"max": 1, "ttl": 30_000_000_000}


@pytest.mark.parametrize("lifetime", [timedelta(0), -HOUR, HOUR + timedelta(seconds=1)])
def test_a_hosts_credential_lives_at_most_an_hour(tmp_path: Path, lifetime: timedelta) -> None:
    with pytest.raises(ValueError, match="at most"):
        host_credentials(ensure_keys(tmp_path), "c", H1, keys.create("user").public, NOW, lifetime)


@pytest.mark.parametrize("name", ["", "*", ">", "h1.h2", "h1.>", "h 1", "h1\r\nPUB", "h1\n", "é", "x" * 65])
def test_a_name_that_would_widen_a_hosts_rights_is_refused(tmp_path: Path, name: str) -> None:
    control, public = ensure_keys(tmp_path), keys.create("user").public
    with pytest.raises(ValueError, match="one word"):
        host_credentials(control, "c", HostId(name), public, NOW, HOUR)
    with pytest.raises(ValueError, match="one word"):
        host_credentials(control, name, H1, public, NOW, HOUR)
    with pytest.raises(ValueError, match="one word"):
        server_credentials(control, name, NOW)


@pytest.mark.parametrize("kind", ["operator", "account"])
def test_a_host_cannot_have_the_key_of_an_operator_or_account(tmp_path: Path, kind: keys.Kind) -> None:
    with pytest.raises(BadKey):
        host_credentials(ensure_keys(tmp_path), "c", H1, keys.create(kind).public, NOW, HOUR)


def test_the_chain_of_trust_goes_from_operator_to_account_to_user(tmp_path: Path) -> None:
    control = ensure_keys(tmp_path)
    operator = claims(operator_jwt(control, NOW))
    assert operator["iss"] == operator["sub"] == control.operator.public
    for public, jwt in account_jwts(control, "c", NOW).items():
        assert claims(jwt)["iss"] == control.operator.public
        assert claims(jwt)["sub"] == public
    assert claims(server_credentials(control, "c", NOW))["iss"] == control.account.public


def test_the_configuration_holds_no_secret_and_opens_no_other_door(tmp_path: Path) -> None:
    control = ensure_keys(tmp_path)
    text = nats_config("127.0.0.1:4222", operator_jwt(control, NOW), account_jwts(control, "c", NOW))
    for path in tmp_path.iterdir():
        assert path.read_text().strip() not in text
    for door in ("websocket", "mqtt", "leafnodes", "no_auth_user", "jetstream", "http"):
        assert door not in text
    assert f"system_account: {control.system.public}" in text
