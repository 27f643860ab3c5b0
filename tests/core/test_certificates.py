"""Which names a host's certificate may carry, and what becomes of certificates when a host leaves."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from vmorch.core.aggregates.certificate import MAX_CERTIFICATES, MAX_NAMES, Certificate
from vmorch.core.aggregates.host import Host, HostEnrolled, HostRetired, certified, may_certify
from vmorch.core.codec import Fact, pack
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet, names_touched
from vmorch.core.ids import HostId, Position, Stream
from vmorch.core.messages import Event, Meta
from vmorch.core.operation import Change

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LIFE = timedelta(days=90)


def host(name: str, *names: str, **more: object) -> Host:
    made = Host(id=HostId(f"id-{name}"), name=name, key="U")
    for event in [certified(certificate(name, *names))] if names else []:
        made = event.apply(made, NOW)
    return replace(made, **more)


def certificate(*names: str, serial: str = "1", expires: datetime = NOW + LIFE) -> Certificate:
    return Certificate(serial=serial, fingerprint="f" * 64, key="a" * 64, names=names, expires=expires)


def asked(*names: str, of: Host | None = None, others: tuple[Host, ...] = ()) -> tuple[str, ...]:
    return may_certify(of or host("hv-01"), "b" * 64, names, others, NOW)


def refused(*names: str, of: Host | None = None, others: tuple[Host, ...] = (), now: datetime = NOW) -> str:
    with pytest.raises(Rejected) as refusal:
        may_certify(of or host("hv-01"), "a" * 64, names, others, now)
    return refusal.value.code


def test_a_certificate_carries_the_host_s_own_name_first_whatever_was_asked() -> None:
    assert asked() == ("hv-01",)
    assert asked("10.0.0.1", "HV-01.Rack.Example", "hv-01") == ("hv-01", "10.0.0.1", "hv-01.rack.example")
    assert asked("fd00::1") == ("hv-01", "fd00::1")


OTHERS = (host("hv-02", "10.0.0.2", "db.example"), host("hv-03"), host("old", "10.0.0.9", retired=True))


@pytest.mark.parametrize(
    "name",
    [
        "hv-02",
        "HV-02",
        "hv-03",
        "hv-02.example",
        "10.0.0.2",
        "db.example",
        "*.example",
        "localhost",
        "localhost.localdomain",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "224.0.0.1",
        "fe80::1",
        "10.0.0.0/8",
        "10.0.0",
        "010.0.0.1",
        "FD00:0:0::1",
        "",
        ".",
        "a..b",
        "-a",
        "a_b",
        "hv-04\n",
        "hv-04\x00.example",
        "hv\u2010" + "01",
        "x" * 64,
        ".".join(["x" * 60] * 5),
        "https://hv-04",
    ],
)
def test_a_foreign_or_malformed_name_is_refused(name: str) -> None:
    assert refused(name, others=OTHERS) == "foreign-name"


def test_a_retired_host_s_names_are_free_again() -> None:
    assert asked("10.0.0.9", "old.example", others=OTHERS) == ("hv-01", "10.0.0.9", "old.example")


def test_a_host_s_own_names_are_no_other_s_when_it_renews() -> None:
    here = host("hv-01", "10.0.0.1")
    assert asked("10.0.0.1", of=here, others=(here, *OTHERS)) == ("hv-01", "10.0.0.1")


def test_a_certificate_does_not_collect_names() -> None:
    assert refused(*(f"10.0.0.{index}" for index in range(10, 10 + MAX_NAMES))) == "foreign-name"


def test_a_request_that_comes_twice_is_refused_by_its_key() -> None:
    assert refused("10.0.0.1", of=host("hv-01", "10.0.0.1")) == "key-reused"


def test_a_host_that_asks_without_end_is_stopped_until_they_expire() -> None:
    here = host("hv-01")
    for serial in range(MAX_CERTIFICATES):
        here = certified(certificate("hv-01", serial=f"{serial:x}")).apply(here, NOW)
    here = replace(here, certificates=tuple(replace(each, key="c" * 64) for each in here.certificates))
    assert refused(of=here) == "too-many-certificates"
    assert may_certify(here, "a" * 64, (), (), NOW + LIFE)


def test_who_is_not_enrolled_gets_none() -> None:
    assert refused(of=host("hv-01", key="")) == "no-such-host"
    assert refused(of=host("hv-01", retired=True)) == "no-such-host"


@pytest.mark.parametrize("end", [HostRetired(), HostEnrolled(key="U2", machine_id="m")])
def test_a_host_that_leaves_or_begins_anew_leaves_its_certificates_revoked(end: HostRetired | HostEnrolled) -> None:
    here = certified(certificate("hv-01", serial="1", expires=NOW + timedelta(days=1))).apply(host("hv-01"), NOW)
    here = certified(certificate("hv-01", "10.0.0.1", serial="2")).apply(here, NOW)
    at = NOW + timedelta(days=2)
    after = end.apply(here, at)
    # the first one expired by itself
    assert [(each.serial, each.at) for each in after.revocations] == [("2", at)]
    assert (after.certificates, after.certified_names) == ((), ())
    assert HostRetired().apply(after, at + LIFE).revocations == ()


def test_the_log_itself_gives_a_name_to_one_host_only() -> None:
    fleet, at = Fleet(), Stream("host/id-hv-01")
    fleet.hosts[HostId("id-hv-01")] = host("hv-01")

    def touched(event: Event) -> tuple[set[str], set[str]]:
        claims, releases = names_touched(fleet, [Change(stream=at, event=pack(event))])
        named = ([each for each in group if each.scope == "certificate"] for group in (claims, releases))
        took, gave = ({each.name for each in group} for group in named)
        return took, gave

    issued = certified(certificate("hv-01", "10.0.0.1"))
    assert touched(issued) == ({"hv-01", "10.0.0.1"}, set())
    meta = Meta(actor="x", occurred_at=NOW)
    fleet.apply(Fact(position=Position(1), stream=at, version=1, event=issued, meta=meta, recorded_at=NOW))
    assert touched(certified(certificate("hv-01", "10.0.0.1", "fd00::1"))) == ({"fd00::1"}, set())
    assert touched(HostRetired()) == (set(), {"hv-01", "10.0.0.1"})
    assert touched(HostEnrolled(key="U2", machine_id="m")) == (set(), {"hv-01", "10.0.0.1"})
