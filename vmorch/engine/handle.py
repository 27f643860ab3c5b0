"""Commands of callers: decide on the world, append, answer. The same five lines for every noun.

Must not wait for an operation; it runs from the log.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal

import msgspec

from vmorch.core.aggregates import cluster as clusters
from vmorch.core.aggregates import host as hosts
from vmorch.core.aggregates import image as images
from vmorch.core.aggregates import passage
from vmorch.core.aggregates import token as tokens
from vmorch.core.aggregates import vm as vms
from vmorch.core.aggregates.host import Host, Overcommit
from vmorch.core.aggregates.image import ImageAdded
from vmorch.core.aggregates.token import Role
from vmorch.core.aggregates.vm import OperationStarted, VmCommand
from vmorch.core.codec import Fact
from vmorch.core.errors import Rejected, bad_value
from vmorch.core.fleet import Fleet, name_held
from vmorch.core.hostcommands import TuneMigration
from vmorch.core.ids import HostId, ImageId, OperationId, Position, VmId, split_stream, stream
from vmorch.core.operation import Change, change
from vmorch.core.operations.create import CreateVm
from vmorch.core.operations.delete_backup import DeleteBackup
from vmorch.core.operations.migrate import Bandwidth, Downtime
from vmorch.core.operations.resolve import ResolveVm
from vmorch.core.operations.restore import RestoreBackup
from vmorch.core.operations.verify_backup import ProveBackup
from vmorch.core.operations.volumes import AskForStrays, CreateVolume, SetStrayAside
from vmorch.core.planning.admission import (
    Admission,
    Who,
    admit_create,
    admit_delete_backup,
    admit_on_vm,
    admit_restore,
    admit_verify,
    admit_volume,
)
from vmorch.core.planning.surrender import give_up
from vmorch.core.planning.undertakings import check_idle
from vmorch.core.planning.volumes import OnStrays, OnVolume, plan_create, plan_on_strays, plan_on_volume
from vmorch.core.sealed import Sealed
from vmorch.core.spec import NAME_RULE, LabelKey, Labels, Name
from vmorch.engine.caller import Accepted, Caller
from vmorch.engine.effects import Ids, Secrets
from vmorch.engine.recorder import Recorder, fingerprint, subject_of
from vmorch.engine.subject_keys import SubjectKeys

INVITATION = timedelta(hours=1)
"""How long an enrolment token is good for."""

BackupCommand = RestoreBackup | ProveBackup | DeleteBackup
VolumeCommand = CreateVolume | OnVolume | OnStrays
HostVerb = Literal["cordon", "uncordon", "label", "overcommit", "retire"]


class LabelChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Labels to set and to remove; others stay."""

    set: Labels = {}
    remove: tuple[LabelKey, ...] = ()


class CordonChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why the host is cordoned."""

    reason: str = ""


class OvercommitChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ratios to change; others stay."""

    cpu: float | None = None
    memory: float | None = None
    disk: float | None = None


class RetireChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`lost`: the host is gone for ever, and the VMs that stood on it with it."""

    lost: bool = False


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of a migration under way to change; others stay. With `postcopy` the guest is switched over now."""

    bandwidth: Bandwidth | None = None
    max_downtime: Downtime | None = None
    postcopy: bool = False


class PolicyChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of the cluster's policy shall be otherwise; the rest stays. See the policy for what each means."""

    clear_migration: bool | None = None
    migrations_out: clusters.Limit | None = None
    migrations_in: clusters.Limit | None = None
    migrations: clusters.Limit | None = None


class NoArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The verb takes none."""


class Handler:
    """What callers may ask for. Every method raises Rejected or LogUnavailable and leaves nothing half done."""

    def __init__(self, recorder: Recorder, ids: Ids, secrets: Secrets, keys: SubjectKeys) -> None:
        self.recorder = recorder
        self.ids = ids
        self.secrets = secrets
        self.keys = keys

    @property
    def fleet(self) -> Fleet:
        """The live state; read only."""
        return self.recorder.world.fleet

    async def create_vm(self, command: CreateVm, caller: Caller) -> Accepted:
        """Begin to create a VM where it fits best."""
        vm, operation = VmId(self.ids()), OperationId(self.ids())
        who = Who(actor=caller.actor, reason=caller.reason)
        unguessable = msgspec.structs.replace(command, user_data=self._keyed(command.user_data))
        print = fingerprint(caller.actor, "create", command.name, unguessable)

        def admit(wanted: CreateVm) -> Admission:
            return admit_create(self.fleet, wanted, vm=vm, operation=operation, who=who)

        # of a repeat nothing is recorded
        sealed = msgspec.structs.replace(command, user_data="")
        if command.user_data and await self.recorder.repeated(caller, print) is None:
            admit(command)  # what is refused needs no key
            user_data = await self.keys.seal(stream("vm", vm), command.user_data)
            sealed = msgspec.structs.replace(command, user_data=user_data)
        return await self._operate("vm", caller, print, lambda: admit(sealed), operation)

    async def plan_create(self, command: CreateVm, caller: Caller, fleet: Fleet | None = None) -> Admission:
        """What `create_vm` would do now, or in a fleet of the past."""
        who = Who(actor=caller.actor, reason=caller.reason)
        return admit_create(
            fleet or self.fleet, command, vm=VmId(self.ids()), operation=OperationId(self.ids()), who=who
        )

    async def on_vm(self, ref: str, command: VmCommand, caller: Caller) -> Accepted:
        """Begin a command on a VM that exists."""
        if isinstance(command, ResolveVm) and not caller.reason:
            raise Rejected("reason-missing", "saying where a VM is needs a reason", hint='add -m "why"')
        operation = OperationId(self.ids())
        return await self._operate(
            "vm",
            caller,
            fingerprint(caller.actor, command.verb, ref, command),
            lambda: self._admit(ref, command, operation, caller),
            operation,
        )

    async def plan_on_vm(
        self, ref: str, command: VmCommand, caller: Caller, fleet: Fleet | None = None
    ) -> Admission:
        """What `on_vm` would do now, or in a fleet of the past."""
        return self._admit(ref, command, OperationId(self.ids()), caller, fleet)

    async def on_backup(self, ref: str, command: BackupCommand, caller: Caller) -> Accepted:
        """Begin to restore, verify or delete a backup."""
        vm, operation = VmId(self.ids()), OperationId(self.ids())
        return await self._operate(
            "vm",
            caller,
            fingerprint(caller.actor, command.verb, ref, command),
            lambda: self._admit_backup(ref, command, vm, operation, caller),
            operation,
        )

    async def plan_on_backup(
        self, ref: str, command: BackupCommand, caller: Caller, fleet: Fleet | None = None
    ) -> Admission:
        """What `on_backup` would do now, or in a fleet of the past."""
        return self._admit_backup(ref, command, VmId(self.ids()), OperationId(self.ids()), caller, fleet)

    async def on_volumes(self, ref: str, command: VolumeCommand, caller: Caller) -> Accepted:
        """Begin the work on a volume that no VM uses, or on directories of the host `ref` that nobody owns. `ref` is
        empty for a volume that is to be made."""
        place, vm, operation = VmId(self.ids()), VmId(self.ids()), OperationId(self.ids())
        return await self._operate(
            "volume",
            caller,
            fingerprint(caller.actor, command.verb, ref, command),
            lambda: self._admit_volumes(ref, command, place, vm, operation, caller),
            operation,
        )

    async def plan_on_volumes(
        self, ref: str, command: VolumeCommand, caller: Caller, fleet: Fleet | None = None
    ) -> Admission:
        """What `on_volumes` would do now, or in a fleet of the past."""
        return self._admit_volumes(
            ref, command, VmId(self.ids()), VmId(self.ids()), OperationId(self.ids()), caller, fleet
        )

    async def cancel(self, operation: OperationId, caller: Caller) -> Accepted:
        """Ask an operation to stop and take back what it did."""
        found = self.fleet.operation(operation)
        if found is None:
            raise Rejected("no-such-operation", f"no operation has the id {operation}", hint="vmorch op list")
        vm = found[0]

        def decide() -> list[Change]:
            now = self.fleet.vms[vm.id]
            return [change(stream("vm", vm.id), event) for event in vms.request_cancel(now, operation)]

        accepted, _ = await self._simple(decide, caller, "cancel", operation, None)
        return msgspec.structs.replace(accepted, operation=operation)

    async def tune(self, operation: OperationId, tuning: Tuning, caller: Caller) -> Accepted:
        """Give a migration under way other limits."""
        found = self.fleet.operation(operation)
        if found is None:
            raise Rejected("no-such-operation", f"no operation has the id {operation}", hint="vmorch op list")
        id = found[0].id

        def decide() -> list[Change]:
            vm = self.fleet.vms[id]
            wanted = TuneMigration(
                vm=id, bandwidth=tuning.bandwidth, max_downtime=tuning.max_downtime, postcopy=tuning.postcopy
            )
            return [change(stream("vm", id), event) for event in passage.tune(vm, vm.operations[operation], wanted)]

        accepted, _ = await self._simple(decide, caller, "tune", operation, tuning)
        return msgspec.structs.replace(accepted, operation=operation)

    async def invite_host(self, name: str, caller: Caller) -> tuple[Accepted, str, datetime]:
        """Let a host of this name enrol once. The token is told here, and again only to a repeat of this request."""
        _check_name(name)
        token = f"vmh_{self._secret('invite', caller)}"
        new = HostId(self.ids())

        def decide() -> list[Change]:
            known = [host for host in self.fleet.hosts.values() if host.name == name and not host.retired]
            if known and known[0].key and known[0].agent == "connected":
                raise Rejected("name-taken", f"a host called {name} is connected", hint=f"vmorch host describe {name}")
            expires = self.recorder.clock.now() + INVITATION
            invited = hosts.HostInvited(name=name, token_hash=_hash(token), expires=expires)
            return [change(stream("host", known[0].id if known else new), invited)]

        told = self.fleet.position
        accepted, facts = await self._simple(decide, caller, "invite", name, None)
        await self._note_telling(facts, told, caller)
        assert isinstance(facts[0].event, hosts.HostInvited)
        return accepted, token, facts[0].event.expires

    async def admit_host(self, token: str, key: str, machine_id: str) -> Host:
        """Pin the key and machine id of the host that shows its one-time token."""
        digest = _hash(token)
        again = [host for host in self.fleet.hosts.values() if host.enrolled_by == digest and host.key == key]
        if again and not again[0].retired:
            return again[0]  # its answer was lost on the way
        found = [host for host in self.fleet.hosts.values() if host.invitation == digest]
        if not found:
            raise Rejected("bad-token", "this enrolment token is not valid or was used before")
        id = found[0].id

        def decide() -> tuple[Iterable[Change], None]:
            now = self.recorder.clock.now()
            events = hosts.enrol(self.fleet.hosts[id], digest, key, machine_id, now)
            return [change(stream("host", id), event) for event in events], None

        await self.recorder.record(decide, lambda _: self.recorder.meta(actor=f"host:{found[0].name}"))
        return self.fleet.hosts[id]

    async def on_host(self, ref: str, verb: HostVerb, arguments: dict[str, Any], caller: Caller) -> Accepted:
        """Change how a host is used. Raises Rejected `bad-request` for arguments that the verb does not know."""
        wanted = _arguments(verb, arguments)
        if isinstance(wanted, RetireChange) and wanted.lost and not caller.reason:
            raise Rejected("reason-missing", "giving a host up as lost needs a reason")

        def decide() -> list[Change]:
            host = self.fleet.find_host(ref)
            if verb == "uncordon":
                check_idle(self.fleet, host)
            given_up = give_up(self.fleet, host) if isinstance(wanted, RetireChange) and wanted.lost else []
            return [change(stream("host", host.id), event) for event in _on_host(host, wanted)] + given_up

        accepted, _ = await self._simple(decide, caller, verb, ref, arguments)
        return accepted

    async def add_image(self, event: ImageAdded, caller: Caller) -> Accepted:
        """Give stored, verified bytes a name."""
        _check_name(event.name)
        at = stream("image", ImageId(self.ids()))

        def decide() -> list[Change]:
            if any(image.name == event.name and not image.removed for image in self.fleet.images.values()):
                raise Rejected("name-taken", f"an image called {event.name} exists")
            return [change(at, event)]

        accepted, _ = await self._simple(decide, caller, "add", event.name, event)
        return accepted

    async def remove_image(self, ref: str, caller: Caller) -> Accepted:
        """Take an image's name away. Raises Rejected `image-in-use` while living VMs stand on its bytes."""

        def decide() -> list[Change]:
            image = self.fleet.find_image(ref)
            digest = image.pin.digest if image.pin else ""
            users = [vm.name for vm in self.fleet.vms.values() if vm.deleted_at is None and _stands_on(vm, digest)]
            others = [i for i in self.fleet.images.values() if i.pin and i.pin.digest == digest and not i.removed]
            if users and len(others) == 1:
                raise Rejected("image-in-use", f"{len(users)} VMs stand on it", facts={"vms": sorted(users)[:20]})
            return [change(stream("image", image.id), event) for event in images.remove(image)]

        accepted, _ = await self._simple(decide, caller, "remove", ref, None)
        return accepted

    async def create_token(
        self, name: str, role: Role, expires: datetime | None, caller: Caller, holder: str = ""
    ) -> tuple[Accepted, str]:
        """A new token, and who holds it. Its secret is told here, and again only to a repeat of this request."""
        _check_name(name)
        secret = f"vmo_{self._secret('token', caller)}"
        at = stream("token", self.ids())
        body = [role, self._keyed(holder)] if holder else role
        before = await self.recorder.repeated(caller, fingerprint(caller.actor, "create-token", name, body))
        sealed = await self.keys.seal(at, holder) if holder and before is None else Sealed("")
        created = tokens.TokenCreated(name=name, role=role, hash=_hash(secret), expires=expires, holder=sealed)
        known = self.fleet.position
        accepted, facts = await self._simple(lambda: [change(at, created)], caller, "create-token", name, body)
        await self._note_telling(facts, known, caller)
        return accepted, secret

    async def revoke_token(self, ref: str, caller: Caller) -> Accepted:
        """Shut a token's bearer out at once."""

        def decide() -> list[Change]:
            token = self.fleet.find_token(ref)
            return [change(stream("token", token.id), event) for event in tokens.revoke(token)]

        accepted, _ = await self._simple(decide, caller, "revoke", ref, None)
        return accepted

    async def note_reading(self, what: str, query: Mapping[str, str], caller: Caller) -> None:
        """Record that the caller reads what reads are recorded of."""

        def decide() -> tuple[Iterable[Change], None]:
            at = stream("token", self.fleet.find_token(caller.actor).id)
            return [change(at, tokens.AuditRead(what=what, query=query))], None

        # not the request's own meta: a secret that is told again was asked for by the request that made it
        meta = self.recorder.meta(
            actor=caller.actor,
            reason=caller.reason,
            traceparent=caller.traceparent,
            fingerprint=fingerprint(caller.actor, "read", what, query),
        )
        await self.recorder.record(decide, lambda _: meta)

    async def _note_telling(self, facts: list[Fact], known: Position, caller: Caller) -> None:
        """A repeated request is told its secret again: that is a reading of it."""
        # nobody but the program itself acts without a token
        bearer = any(token.name == caller.actor for token in self.fleet.tokens.values())
        if bearer and facts[0].position <= known:
            await self.note_reading(f"the secret of {facts[0].stream}", {}, caller)

    async def set_policy(self, wanted: PolicyChange, caller: Caller) -> Accepted:
        """Change what holds for all hosts and VMs. Raises Rejected `reason-missing` if guests shall travel in clear."""
        changed = {key: value for key, value in msgspec.to_builtins(wanted).items() if value is not None}
        if wanted.clear_migration and not caller.reason:
            raise Rejected("reason-missing", "letting guests travel unencrypted needs a reason")

        def decide() -> list[Change]:
            policy = msgspec.structs.replace(self.fleet.cluster.policy, **changed)
            return [change(clusters.STREAM, event) for event in clusters.set_policy(self.fleet.cluster, policy)]

        accepted, _ = await self._simple(decide, caller, "set-policy", clusters.STREAM, wanted)
        return accepted

    async def adopt_authority(self, fingerprint: str, *, instead: bool, actor: str) -> None:
        """Hosts' certificates are signed by this authority. Raises Rejected `other-authority` if they are by another
        one and it shall not be used `instead`."""

        def decide() -> tuple[list[Change], None]:
            events = clusters.adopt_authority(self.fleet.cluster, fingerprint, instead=instead)
            return [change(clusters.STREAM, event) for event in events], None

        await self.recorder.record(decide, lambda _: self.recorder.meta(actor=actor))

    async def announce_log_key(self, key: str, *, orphaned: bool, actor: str) -> None:
        """The log's checkpoints are signed by this key from now on; `orphaned`: the one before it is lost."""

        def decide() -> tuple[list[Change], None]:
            events = clusters.announce_log_key(self.fleet.cluster, key, orphaned=orphaned)
            return [change(clusters.STREAM, event) for event in events], None

        await self.recorder.record(decide, lambda _: self.recorder.meta(actor=actor))

    def _secret(self, purpose: str, caller: Caller) -> str:
        """The same for a repeated request, so that an answer that got lost can be had again."""
        return self.secrets(f"{purpose}/{caller.actor}/{caller.request or self.ids()}")

    def _keyed(self, text: str) -> str:
        """Tells a text from others in a fingerprint, which everybody may read; nobody else can try guesses on it."""
        return self.secrets(f"print/{text}") if text else ""

    def _admit(
        self, ref: str, command: VmCommand, operation: OperationId, caller: Caller, fleet: Fleet | None = None
    ) -> Admission:
        who, seen = Who(actor=caller.actor, reason=caller.reason), fleet or self.fleet
        return admit_on_vm(seen, seen.find_vm(ref), command, operation=operation, who=who)

    def _admit_backup(
        self,
        ref: str,
        command: BackupCommand,
        vm: VmId,
        operation: OperationId,
        caller: Caller,
        seen: Fleet | None = None,
    ) -> Admission:
        fleet = seen or self.fleet
        who, backup = Who(actor=caller.actor, reason=caller.reason), fleet.find_backup(ref)
        match command:
            case RestoreBackup():
                return admit_restore(fleet, backup, command, vm=vm, operation=operation, who=who)
            case ProveBackup():
                return admit_verify(fleet, backup, command, vm=vm, operation=operation, who=who)
            case DeleteBackup():
                return admit_delete_backup(fleet, backup, command, vm=vm, operation=operation, who=who)

    def _admit_volumes(
        self,
        ref: str,
        command: VolumeCommand,
        place: VmId,
        vm: VmId,
        operation: OperationId,
        caller: Caller,
        seen: Fleet | None = None,
    ) -> Admission:
        fleet, who = seen or self.fleet, Who(actor=caller.actor, reason=caller.reason)
        on: dict[str, object] = {"place": place}
        match command:
            case CreateVolume():
                made = plan_create(fleet, command, place=place, vm=vm)
            case AskForStrays() | SetStrayAside():
                host = fleet.find_host(ref)
                made, on["host"] = plan_on_strays(fleet, host, command, place=place, vm=vm), host.id
            case _:
                volume = fleet.find_volume(ref)
                made, on["volume"] = plan_on_volume(fleet, volume, command, place=place, vm=vm), volume.id
        return admit_volume(fleet, made, command, vm=vm, operation=operation, who=who, on=on)

    async def _operate(
        self,
        kind: Literal["vm", "volume"],
        caller: Caller,
        print: str,
        admit: Callable[[], Admission],
        operation: OperationId,
    ) -> Accepted:
        def decide() -> tuple[Iterable[Change], Admission]:
            admission = admit()
            return admission.changes, admission

        def meta(admission: Admission) -> Any:
            of = operation if admission.starts_operation else None
            return self.recorder.meta_of(caller, operation=of, print=print)

        facts = await self.recorder.once(decide, meta, caller, print)
        # what is done on a host's strays has only the VM that carries it
        known: Literal["vm", "volume"] = kind if any(split_stream(fact.stream)[0] == kind for fact in facts) else "vm"
        id = subject_of(facts, known)
        started = [fact.event.operation for fact in facts if isinstance(fact.event, OperationStarted)]
        return Accepted(
            subject=id,
            name=name_held(self.fleet, stream(known, id)),
            position=facts[-1].position,
            operation=started[0] if started else None,
        )

    async def _simple(
        self, decide: Callable[[], list[Change]], caller: Caller, verb: str, ref: str, body: Any
    ) -> tuple[Accepted, list[Fact]]:
        """Append what `decide` says, or find what a repeat of the request appended. The first event names the
        subject."""
        print = fingerprint(caller.actor, verb, ref, body)
        facts: list[Fact] = await self.recorder.once(
            lambda: (decide(), None), lambda _: self.recorder.meta_of(caller, print=print), caller, print
        )
        subject, at = split_stream(facts[0].stream)[1], facts[0].stream
        return Accepted(subject=subject, name=name_held(self.fleet, at), position=facts[-1].position), facts


def _on_host(host: Host, wanted: msgspec.Struct) -> list[hosts.HostEvent]:
    match wanted:
        case CordonChange(reason=reason):
            return hosts.cordon(host, reason)
        case LabelChange(set=set, remove=remove):
            labels = {key: value for key, value in {**host.labels, **set}.items() if key not in remove}
            if labels == dict(host.labels):
                raise Rejected("already-so", f"{host.name} has these labels already")
            return [hosts.HostLabelled(labels=labels)]
        case OvercommitChange():
            changed = {key: value for key, value in msgspec.to_builtins(wanted).items() if value is not None}
            if any(value <= 0 or value > 100 for value in changed.values()):
                raise Rejected("bad-spec", "an overcommit ratio lies above 0 and is at most 100")
            ratios: Overcommit = msgspec.structs.replace(host.overcommit, **changed)
            if ratios == host.overcommit:
                raise Rejected("already-so", f"{host.name} has these ratios already")
            return [hosts.OvercommitSet(overcommit=ratios)]
        case RetireChange(lost=lost):
            return hosts.retire(host, lost=lost)
        case _:
            return hosts.uncordon(host)


ARGUMENTS: dict[HostVerb, type[msgspec.Struct]] = {
    "cordon": CordonChange,
    "uncordon": NoArguments,
    "label": LabelChange,
    "overcommit": OvercommitChange,
    "retire": RetireChange,
}
"""What each verb on a host takes."""


def _arguments(verb: HostVerb, arguments: dict[str, Any]) -> msgspec.Struct:
    try:
        return msgspec.convert(arguments, ARGUMENTS[verb])
    except msgspec.ValidationError as error:
        raise bad_value(str(error)) from error


def _stands_on(vm: vms.Vm, digest: str) -> bool:
    return vm.spec is not None and any(disk.image and disk.image.digest == digest for disk in vm.spec.disks)


def _check_name(name: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise Rejected("bad-name", f"{name!r} is not a name: {NAME_RULE}") from error


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
