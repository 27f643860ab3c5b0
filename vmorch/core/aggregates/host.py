"""A host: what it is, whether its agent is here, and what of it is promised to whom.

Reservations are the only accounting of capacity; what a VM may fill is promised before anything is made.
Must not choose a host (that is placement) and must not believe silence: a lost agent is `unreachable`.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Literal

from msgspec.structs import replace

from vmorch.core.aggregates.certificate import (
    MAX_CERTIFICATES,
    Certificate,
    Hex,
    Revocation,
    names_for,
    revoke,
)
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Stray
from vmorch.core.ids import GiB, HostId, MiB, SessionId, VmId
from vmorch.core.messages import Event, message
from vmorch.core.spec import HostFacts, Labels, VmSpec
from vmorch.core.value import Value

AgentState = Literal["invited", "connected", "unreachable"]


class Overcommit(Value, frozen=True, kw_only=True):
    """How much more than it has a host may promise, as a ratio for each resource."""

    cpu: float = 4.0
    memory: float = 1.0
    disk: float = 1.0


class Reservation(Value, frozen=True, kw_only=True):
    """What one VM may come to use of a host."""

    vcpus: int
    memory: MiB
    local_gib: GiB
    shared_gib: GiB

    @staticmethod
    def of(spec: VmSpec) -> "Reservation":
        """The most that a VM of this spec can come to use without a new decision."""
        by = {"local": 0, "shared": 0}
        for disk in spec.disks:
            by[disk.storage] += disk.size
        return Reservation(
            vcpus=spec.max_vcpus,
            memory=spec.max_memory,
            local_gib=GiB(by["local"]),
            shared_gib=GiB(by["shared"]),
        )


def larger(one: Reservation, other: Reservation) -> Reservation:
    """What covers both."""
    return Reservation(
        vcpus=max(one.vcpus, other.vcpus),
        memory=max(one.memory, other.memory),
        local_gib=max(one.local_gib, other.local_gib),
        shared_gib=max(one.shared_gib, other.shared_gib),
    )


class Capacity(Value, frozen=True, kw_only=True):
    """Amounts of each resource of a host: all, promised or left."""

    vcpus: float
    memory: float
    local_gib: float
    shared_gib: float


RESOURCES = (
    ("vcpus", "vCPUs"),
    ("memory", "MiB"),
    ("local_gib", "GiB local disk"),
    ("shared_gib", "GiB shared disk"),
)
"""What is promised, and in which unit people read it."""


class Host(Value, frozen=True, kw_only=True):
    """A host, folded from its stream."""

    id: HostId
    name: str
    version: int = 0
    key: str = ""
    machine_id: str = ""
    agent: AgentState = "invited"
    session: SessionId | None = None
    session_number: int = 0
    since: datetime | None = None
    facts: HostFacts | None = None
    labels: Mapping[str, str] = {}
    cordoned: str | None = None
    overcommit: Overcommit = Overcommit()
    reservations: Mapping[VmId, Reservation] = {}
    unmanaged: tuple[str, ...] = ()
    strays: tuple[Stray, ...] = ()
    """Directories that nobody owned when it was asked last, at `strays_at`."""
    strays_at: datetime | None = None
    invitation: str | None = None
    invitation_expires: datetime | None = None
    enrolled_by: str | None = None
    retired: bool = False
    certificates: tuple[Certificate, ...] = ()
    """Those in force when the last one was issued, oldest first."""
    certified_names: tuple[str, ...] = ()
    """All names that its certificates carried since it enrolled; no other host's certificate carries one of them."""
    revocations: tuple[Revocation, ...] = ()

    @property
    def encrypts(self) -> bool:
        """Whether guests can come and go encrypted."""
        return self.facts is not None and self.facts.encrypts

    def total(self) -> Capacity:
        """All that may be promised, overcommit included; nothing before its agent reported facts."""
        if self.facts is None:
            return Capacity(vcpus=0, memory=0, local_gib=0, shared_gib=0)
        return Capacity(
            vcpus=self.facts.cpus * self.overcommit.cpu,
            memory=self.facts.memory * self.overcommit.memory,
            local_gib=self.facts.local_gib * self.overcommit.disk,
            shared_gib=self.facts.shared_gib * self.overcommit.disk,
        )

    def promised(self, without: VmId | None = None) -> Capacity:
        """All that is promised, leaving out one VM if named."""
        held = [each for vm, each in self.reservations.items() if vm != without]
        return Capacity(
            vcpus=sum(each.vcpus for each in held),
            memory=sum(each.memory for each in held),
            local_gib=sum(each.local_gib for each in held),
            shared_gib=sum(each.shared_gib for each in held),
        )

    def shortfall(self, asked: Reservation, vm: VmId | None = None) -> str:
        """Why `asked` does not fit beside what others hold, in words; empty if it fits."""
        total, promised = self.total(), self.promised(without=vm)
        if asked.shared_gib and not (self.facts and self.facts.shared_gib):
            return "has no shared storage"
        for resource, unit in RESOURCES:
            free = getattr(total, resource) - getattr(promised, resource)
            want = getattr(asked, resource)
            if want > free:
                return f"needs {want} {unit}, {max(free, 0):g} left of {getattr(total, resource):g}"
        return ""


class HostEvent(Event, frozen=True, kw_only=True):
    """A fact about one host."""

    subject: ClassVar[str] = "host"

    def apply(self, host: Host, at: datetime) -> Host:
        """The host after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("host.invited")
class HostInvited(HostEvent, frozen=True, kw_only=True):
    """A host of this name may enrol once with the token whose SHA-256 this is."""

    name: str
    token_hash: str
    expires: datetime

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(
            host, name=self.name, invitation=self.token_hash, invitation_expires=self.expires, retired=False
        )


@message("host.enrolled")
class HostEnrolled(HostEvent, frozen=True, kw_only=True):
    """The host showed its token and pinned its key (an nkey public key) and machine id."""

    key: str
    machine_id: str

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(
            host,
            key=self.key,
            machine_id=self.machine_id,
            agent="unreachable",
            session=None,
            session_number=0,
            since=at,
            enrolled_by=host.invitation,
            invitation=None,
            invitation_expires=None,
            **_uncertified(host, at),
        )


@message("host.session-started")
class SessionStarted(HostEvent, frozen=True, kw_only=True):
    """The host's agent connected and said what the host is. Earlier sessions are over."""

    session: SessionId
    facts: HostFacts
    number: int = 0

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(
            host,
            session=self.session,
            session_number=self.number,
            facts=self.facts,
            agent="connected",
            since=at,
        )


@message("host.unreachable")
class HostUnreachable(HostEvent, frozen=True, kw_only=True):
    """Nothing was heard of the session for `silent` seconds. Says nothing about the host's VMs."""

    session: SessionId | None
    silent: float

    def apply(self, host: Host, at: datetime) -> Host:
        if host.session != self.session:
            return host
        return replace(host, agent="unreachable", since=at)


@message("host.reachable")
class HostReachable(HostEvent, frozen=True, kw_only=True):
    """The same session is heard again."""

    session: SessionId

    def apply(self, host: Host, at: datetime) -> Host:
        if host.session != self.session:
            return host
        return replace(host, agent="connected", since=at)


@message("host.capacity-reserved")
class CapacityReserved(HostEvent, frozen=True, kw_only=True):
    """This much of the host is promised to the VM, in place of what was before."""

    vm: VmId
    reservation: Reservation

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(host, reservations={**host.reservations, self.vm: self.reservation})


@message("host.capacity-released")
class CapacityReleased(HostEvent, frozen=True, kw_only=True):
    """Nothing of the host is promised to the VM any more."""

    vm: VmId

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(host, reservations={vm: r for vm, r in host.reservations.items() if vm != self.vm})


@message("host.cordoned")
class HostCordoned(HostEvent, frozen=True, kw_only=True):
    """The host receives no new VMs; those on it stay."""

    reason: str = ""

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(host, cordoned=self.reason)


@message("host.uncordoned")
class HostUncordoned(HostEvent, frozen=True, kw_only=True):
    """The host receives new VMs again."""

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(host, cordoned=None)


@message("host.labelled")
class HostLabelled(HostEvent, frozen=True, kw_only=True):
    """The host's labels are these and no others."""

    labels: Labels

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(host, labels=self.labels)


@message("host.overcommit-set")
class OvercommitSet(HostEvent, frozen=True, kw_only=True):
    """The host may promise this multiple of what it has."""

    overcommit: Overcommit

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(host, overcommit=self.overcommit)


@message("host.unmanaged-seen")
class UnmanagedSeen(HostEvent, frozen=True, kw_only=True):
    """Domains stand on the host that vmorch did not make; they are listed and never touched."""

    unasked = True

    domains: tuple[str, ...]

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(host, unmanaged=self.domains)


@message("host.retired")
class HostRetired(HostEvent, frozen=True, kw_only=True):
    """The host is no longer part of the cluster; its key is not accepted any more."""

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(
            host, retired=True, agent="unreachable", since=at, session=None, key="", **_uncertified(host, at)
        )


def _uncertified(host: Host, at: datetime) -> dict[str, Any]:
    """What becomes of the certificates of a host that leaves or begins anew."""
    kept = tuple(each for each in host.revocations if each.expires > at)
    return {
        "certificates": (),
        "certified_names": (),
        "revocations": (*kept, *revoke(host.certificates, at)),
    }


@message("host.certified")
class HostCertified(HostEvent, frozen=True, kw_only=True):
    """The cluster's authority signed a certificate for the host. `fingerprint` is the SHA-256 of the certificate, `key`
    that of its public key; the private key never left the host."""

    names: tuple[str, ...]
    expires: datetime
    fingerprint: Hex
    serial: Hex
    key: Hex

    def apply(self, host: Host, at: datetime) -> Host:
        issued = Certificate(
            serial=self.serial, fingerprint=self.fingerprint, key=self.key, names=self.names, expires=self.expires
        )
        return replace(
            host,
            certificates=(*(each for each in host.certificates if each.expires > at), issued),
            certified_names=tuple(sorted({*host.certified_names, *self.names})),
        )


def cordon(host: Host, reason: str) -> list[HostEvent]:
    """Keep new VMs away. Raises Rejected `already-so`."""
    if host.cordoned is not None:
        raise Rejected("already-so", f"{host.name} is already cordoned")
    return [HostCordoned(reason=reason)]


def uncordon(host: Host) -> list[HostEvent]:
    """Let new VMs come. Raises Rejected `already-so`."""
    if host.cordoned is None:
        raise Rejected("already-so", f"{host.name} is not cordoned")
    return [HostUncordoned()]


@message("host.strays-found")
class StraysFound(HostEvent, frozen=True, kw_only=True):
    """The host looked through its directories for some that nobody owns, and found these."""

    strays: tuple[Stray, ...]

    def apply(self, host: Host, at: datetime) -> Host:
        return replace(host, strays=self.strays, strays_at=at)


def reserve(host: Host, vm: VmId, asked: Reservation) -> list[HostEvent]:
    """Promise capacity to a VM, replacing its earlier promise. Raises Rejected `no-capacity`."""
    short = host.shortfall(asked, vm)
    if short:
        raise Rejected("no-capacity", f"{host.name} {short}")
    return [CapacityReserved(vm=vm, reservation=asked)]


def enrol(host: Host, token_hash: str, key: str, machine_id: str, now: datetime) -> list[HostEvent]:
    """Admit a host that shows its one-time token. Raises Rejected `bad-token` or `token-expired`."""
    if host.retired or host.invitation is None or host.invitation != token_hash:
        raise Rejected("bad-token", "this enrolment token is not valid or was used before")
    if host.invitation_expires is not None and now >= host.invitation_expires:
        raise Rejected(
            "token-expired", "this enrolment token has expired", hint=f"vmorch host enroll {host.name}"
        )
    return [HostEnrolled(key=key, machine_id=machine_id)]


def may_certify(host: Host, key: str, asked: Iterable[str], others: Iterable[Host], now: datetime) -> tuple[str, ...]:
    """The names of the certificate that a host gets for this public key when it asks for those names.

    Raises Rejected `no-such-host`, `key-reused`, `too-many-certificates` or `foreign-name`.
    """
    if host.retired or not host.key:
        raise Rejected("no-such-host", f"{host.name} is not part of the cluster")
    if any(each.key == key for each in host.certificates):
        # an agent makes a new key each time, so this is a request that somebody heard and sent again
        raise Rejected("key-reused", "this key has a certificate already; make a new one")
    if sum(each.expires > now for each in host.certificates) >= MAX_CERTIFICATES:
        raise Rejected(
            "too-many-certificates",
            f"{host.name} has {MAX_CERTIFICATES} certificates in force",
            hint=f"vmorch host enroll {host.name} revokes them",
        )
    taken = [name for each in others if each.id != host.id and not each.retired for name in _names(each)]
    return names_for(host.name, asked, taken)


def certified(issued: Certificate) -> HostCertified:
    """That this certificate was signed."""
    return HostCertified(
        serial=issued.serial,
        fingerprint=issued.fingerprint,
        key=issued.key,
        names=issued.names,
        expires=issued.expires,
    )


def _names(host: Host) -> tuple[str, ...]:
    return (host.name, *host.certified_names)


def retire(host: Host, *, lost: bool) -> list[HostEvent]:
    """Remove a host: an empty one, or with `lost` one that is gone for ever and whose VMs are given up with it.

    Raises Rejected `host-not-empty`, `host-connected` or `already-so`.
    """
    if host.retired:
        raise Rejected("already-so", f"{host.name} is already retired")
    if lost and host.agent == "connected":
        raise Rejected("host-connected", f"{host.name} is connected, so it is not lost")
    if host.reservations and not lost:
        raise Rejected(
            "host-not-empty",
            f"{len(host.reservations)} VMs still stand on {host.name}",
            hint=f"vmorch vm list --host {host.name}; if it is gone for ever: vmorch host retire {host.name} --lost",
        )
    return [*(CapacityReleased(vm=vm) for vm in host.reservations), HostRetired()]
