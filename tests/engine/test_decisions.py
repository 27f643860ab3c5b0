"""A recorded decision follows from the state at the position that it names: made again there, it is the same."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from tests.engine.cluster import OPERATOR, Cluster, cluster, until
from tests.engine.decisions import again, decisions, recorded
from tests.engine.test_drains import ADMIN
from vmorch.core.aggregates.drain import ActivateHost, PlanDrain
from vmorch.core.codec import decode
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Failed
from vmorch.core.ids import GiB, MiB, Position
from vmorch.core.operations.attach_volume import AttachVolume
from vmorch.core.operations.back_up import BackUpVm
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.delete_backup import DeleteBackup
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.detach_volume import DetachVolume
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.operations.pause import PauseVm
from vmorch.core.operations.reboot import RebootVm
from vmorch.core.operations.resize import ResizeVm
from vmorch.core.operations.restore import RestoreBackup
from vmorch.core.operations.resume import ResumeVm
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.operations.verify_backup import ProveBackup
from vmorch.core.operations.volumes import CloneVolume, CreateVolume, DeleteVolume, ResizeVolume

pytestmark = pytest.mark.anyio

HOSTS = ("h1", "h2", "h3", "h4")
ROUNDS = 120
WORKERS = 4


class Operators:
    """Some people who do what comes to their minds, all at once, and take no for an answer."""

    def __init__(self, made: Cluster, seed: int) -> None:
        self.made, self.random = made, Random(seed)
        self.number = 0

    def new(self, kind: str) -> str:
        self.number += 1
        return f"{kind}-{self.number}"

    def any_vm(self) -> str:
        names = [vm.name for vm in self.made.fleet.vms.values() if vm.deleted_at is None]
        return self.random.choice(names) if names else "nobody"

    def any_of(self, kind: str) -> str:
        found = [each.name for each in getattr(self.made.fleet, kind).values()]
        return self.random.choice(found) if found else "none"

    async def work(self) -> None:
        for _ in range(ROUNDS):
            try:
                await self.random.choice(self.acts())()
            except Rejected:
                continue

    def acts(self) -> list[Callable[[], Awaitable[object]]]:
        control, chance = self.made.control, self.random

        def on_vm(command: object) -> Callable[[], Awaitable[object]]:
            return lambda: self.waited(control.on_vm(self.any_vm(), command, OPERATOR))  # type: ignore[arg-type]

        def create() -> Awaitable[object]:
            shared = chance.choice(("local", "shared"))
            return self.waited(self.made.create(self.new("vm"), storage=shared, max_memory=MiB(2048)))

        def on_backup(command: object) -> Callable[[], Awaitable[object]]:
            return lambda: self.waited(control.on_backup(self.any_of("backups"), command, OPERATOR))  # type: ignore[arg-type]

        def on_volume(command: object) -> Callable[[], Awaitable[object]]:
            return lambda: self.waited(control.on_volumes(self.any_of("volumes"), command, OPERATOR))  # type: ignore[arg-type]

        volume, snapshot = self.any_of("volumes"), self.any_snapshot()
        return [
            create, create, create, self.drain, self.activate, self.trip,
            *(on_vm(each) for each in (
                StopVm(), StartVm(), PauseVm(), ResumeVm(), RebootVm(), MigrateVm(), MigrateVm(), DeleteVm(),
                SnapshotVm(name=self.new("s")), SnapshotVm(name=self.new("s")), DeleteSnapshot(snapshot=snapshot),
                RollbackVm(to=snapshot), ResizeVm(memory=MiB(chance.choice((512, 768, 1024)))),
                BackUpVm(name=self.new("b")), AttachVolume(volume=volume), DetachVolume(volume=volume),
            )),
            on_backup(RestoreBackup(name=self.new("vm"))), on_backup(ProveBackup(boot=chance.random() < 0.5)),
            on_backup(DeleteBackup(with_children=True)),
            lambda: self.waited(control.on_volumes("", CreateVolume(name=self.new("v"), size=GiB(1)), OPERATOR)),
            on_volume(CloneVolume(name=self.new("v"))), on_volume(ResizeVolume(size=GiB(3))), on_volume(DeleteVolume()),
        ]  # fmt: skip

    def any_snapshot(self) -> str:
        names = [name for vm in self.made.fleet.vms.values() for name in (s.name for s in vm.snapshots.values())]
        return self.random.choice(names) if names else "none"

    async def waited(self, asked: Awaitable[object]) -> None:
        operation = getattr(await asked, "operation", None)
        # some are left running, so that others meet them
        if operation is not None and self.random.random() < 0.7:
            await self.made.over(operation)

    async def drain(self) -> None:
        host = self.random.choice(HOSTS)
        await self.made.control.drains.plan(PlanDrain(hosts=(host,), start=True, on_blocked="skip"), ADMIN)
        await until(lambda: not any(drain.running for drain in self.made.fleet.drains.values()))

    async def activate(self) -> None:
        await self.made.control.drains.activate(self.random.choice(HOSTS), ActivateHost(), ADMIN)

    async def trip(self) -> None:
        failed = Failed(code="libvirt-refused", message="no")
        self.made.host(self.random.choice(HOSTS)).hypervisor.fail_next(failed, "host.define-domain")


async def test_every_decision_of_a_long_mixed_run_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    async with cluster(tmp_path, *HOSTS) as made:
        people = [Operators(made, number) for number in range(WORKERS)]
        for number, each in enumerate(people):
            each.number = number * 1000
        await asyncio.gather(*(each.work() for each in people))
        records = await made.log.read(Position(0), 1_000_000)
    fleet, verbs = Fleet(), Counter[str]()
    for decision in decisions(records):
        for record in records[fleet.position : decision.position]:
            fleet.apply(decode(record))
        assert fleet.position == decision.position < decision.record.position
        made_now = again(fleet, decision)
        assert made_now == recorded(decision, made_now), decision
        verbs[getattr(decision.event, "verb", decision.event.kind)] += 1
    assert sum(verbs.values()) > 100, verbs
    assert len(verbs) > 16, verbs
