"""A causal chain never breaks: from every event there is a way back to somebody's own act."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.engine.cluster import OPERATOR, Cluster, cluster, until
from tests.engine.test_authority import builder, signed
from tests.engine.test_drains import ADMIN, begin, over, slowly, vm_on
from tests.engine.test_maintenance import begin as begin_maintenance
from tests.engine.test_maintenance import maintenance, phase
from vmorch.core.aggregates.budget import CreateBudget
from vmorch.core.aggregates.drain import ActivateHost
from vmorch.core.codec import Fact, decode
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Failed
from vmorch.core.hypervisor import LibvirtHost
from vmorch.core.ids import GiB, MiB, OperationId, Position, VmId, stream
from vmorch.core.operations.back_up import BackUpVm
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.operations.rename import RenameVm
from vmorch.core.operations.resize import ResizeVm
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.operations.volumes import CreateVolume
from vmorch.core.records import Recorded
from vmorch.core.spec import Placing
from vmorch.engine.handle import PolicyChange, Tuning
from vmorch.engine.why import chain, last_change

pytestmark = pytest.mark.anyio

SEEN = {
    "host.certified",
    "host.enrolled",
    "host.reachable",
    "host.session-started",
    "host.unmanaged-seen",
    "vm.drifted",
    "vm.observed",
}
"""What a host tells unasked."""
JUDGED = {"host.reachable", "host.unreachable"}
"""What vmorch says of its own accord."""


async def records(made: Cluster) -> list[Recorded]:
    return await made.log.read(Position(0), 100_000)


def began(root: Fact) -> str:
    """Whose act it was: an operator's, a host's or vmorch's own; empty if such an event follows from another."""
    actor, kind = root.meta.actor, root.event.kind
    if actor == "ada":
        return "operator"
    if actor.startswith("host:") and kind in SEEN:
        return "host"
    return "vmorch" if actor == "system" and kind in JUDGED else ""


async def assert_whole(made: Cluster) -> Mapping[str, set[str]]:
    """Every event leads back to somebody's own act; the kinds of event that led to each sort of beginning."""
    found: dict[str, set[str]] = {}
    broken = []
    for record in await records(made):
        links = await chain(made.log, record)
        root = decode(links[-1])
        whose = began(root)
        if not whose:
            end = f"{root.position} {root.event.kind} {root.meta.actor}"
            broken.append(f"{record.position} {record.kind} ends at {end}")
        found.setdefault(whose, set()).add(record.kind)
    assert not broken, "\n".join(broken)
    return found


async def test_the_chain_of_every_event_of_a_mixed_life_is_whole(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2", "h3") as made:
        for name in ("web", "shop", "db"):
            await vm_on(made, "h1", name, max_memory=MiB(1024))
        await made.do("web", StopVm())
        await made.do("web", StartVm())
        await made.control.on_vm("web", RenameVm(name="front"), OPERATOR)
        await made.do("shop", ResizeVm(memory=MiB(768)))
        await made.do("db", SnapshotVm(name="before"))
        await made.do("db", RollbackVm(to="before"))
        await made.do("shop", MigrateVm(to="h2"))
        made.host("h1").hypervisor.fail_next(Failed(code="libvirt-refused", message="no"), "host.define-domain")
        accepted = await made.create("broken", placing=Placing(host="h1"))
        assert (await made.over(accepted.operation)).outcome  # type: ignore[arg-type]
        await over(made, await begin(made, "h1"))
        await made.control.drains.activate("h1", ActivateHost(), ADMIN)
        await made.do("db", DeleteVm())
        found = await assert_whole(made)
    assert {
        "drain.ended",
        "drain.move-ended",
        "host.capacity-released",
        "vm.deleted",
        "vm.migrated",
        "vm.resized",
        "vm.rolled-back",
        "vm.snapshot-taken",
        "vm.step-done",
        "vm.step-failed",
    } <= found["operator"]


async def test_the_chain_of_a_maintenance_leads_back_to_who_began_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h2") as made:
        async with made.host("h1").agent():
            await until(lambda: made.fleet.find_host("h1").agent == "connected")
            await vm_on(made, "h1", "web")
            id = await begin_maintenance(made, "h1", bring_back=True)
            await until(lambda: phase(made, id, "h1") == "open")
        await made.control.upkeep.work_done("h1", ADMIN)
        async with made.host("h1").agent():
            await until(lambda: maintenance(made, id).outcome is not None)
        found = await assert_whole(made)
        moved = [record for record in await records(made) if record.kind == "vm.migrated"]
        for record in moved:
            kinds = [each.kind for each in await chain(made.log, record)]
            assert "vm.operation-started" in kinds
            assert kinds[-1] == "maintenance.started"
    assert {"maintenance.ended", "drain.ended", "maintenance.errand-done"} <= found["operator"]


async def test_a_chain_leads_over_the_hosts_answers_to_the_command(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        await vm_on(made, "h1", "web")
        await made.do("web", StopVm())
        await made.control.on_vm("web", RenameVm(name="shop"), OPERATOR)
        vm = stream("vm", made.vm("shop").id)
        change = await last_change(made.log, made.fleet, vm, "power")
        assert (change.before, change.after) == ("running", "off")
        links = [decode(each) for each in await chain(made.log, change.record)]
        assert links[0].meta.actor == "host:h1"
        assert links[-1].event.kind == "vm.operation-started"
        assert (links[-1].meta.actor, links[-1].meta.reason) == ("ada", "test")
        named = await last_change(made.log, made.fleet, vm, "name")
        assert named.record.kind == "vm.renamed"
        host = await last_change(made.log, made.fleet, vm, "host")
        assert (host.before, host.after) == (None, "h1")
        memory = await last_change(made.log, made.fleet, vm, "memory")
        assert memory.record.kind == "vm.created"
        assert (await last_change(made.log, made.fleet, vm, None)).record.kind == "vm.renamed"
        with pytest.raises(Rejected, match="no field"):
            await last_change(made.log, made.fleet, vm, "colour")


async def test_why_a_host_takes_no_vms(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        await over(made, await begin(made, "h1"))
        change = await last_change(made.log, made.fleet, stream("host", made.fleet.find_host("h1").id), "cordoned")
        links = [decode(each) for each in await chain(made.log, change.record)]
        assert links[-1].meta.actor == "ada"
        assert change.after is not None


async def test_the_chain_of_what_is_rare_is_whole(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        control = made.control
        await control.adopt_authority("ab" * 32, instead=True, actor="ada")
        await control.adopt_authority(control.identity.authority.fingerprint, instead=True, actor="ada")
        await control.certify_host(made.fleet.find_host("h1").id, signed(builder("h1", subject="h1")))
        await control.on_host("h1", "overcommit", {"cpu": 5.0}, ADMIN)
        await control.drains.create_budget(CreateBudget(name="few", selector={"app": "web"}), ADMIN)
        await control.drains.delete_budget("few", ADMIN)
        await control.create_token("ci", "viewer", None, ADMIN)
        await control.revoke_token("ci", ADMIN)
        await vm_on(made, "h1", "web")
        await made.image("old")
        await control.remove_image("old", ADMIN)
        made.host("h1").hypervisor.tamper(lambda host: _grown(replace(host, foreign=("pet",)), made.vm("web").id))
        await until(lambda: bool(made.vm("web").drift) and bool(made.fleet.find_host("h1").unmanaged))
        made.seconds = slowly
        accepted = await control.on_vm("web", MigrateVm(to="h2"), OPERATOR)
        assert accepted.operation is not None
        id = accepted.operation
        await until(lambda: made.operation(id).progress.done == at_passage(made, id))
        await control.tune(id, Tuning(bandwidth=100), OPERATOR)
        await made.over(id)
        found = await assert_whole(made)
    assert "vm.tuning-answered" in found["operator"]
    assert {"vm.drifted", "host.unmanaged-seen"} <= found["host"]


def at_passage(made: Cluster, id: OperationId) -> int:
    """Which step of a migration moves the guest."""
    return next(index for index, step in enumerate(made.operation(id).steps) if step.judged)


def _grown(host: LibvirtHost, vm: VmId) -> LibvirtHost:
    domain = host.domains[vm]
    return replace(host, domains={**host.domains, vm: replace(domain, found=replace(domain.found, memory=MiB(640)))})


async def test_why_is_known_of_every_field_of_every_kind_of_thing(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        control = made.control
        accepted = await made.create("web", storage="shared")
        assert accepted.operation is not None
        await made.over(accepted.operation)
        await made.do("web", BackUpVm(name="nightly"))
        made_volume = await control.on_volumes("", CreateVolume(name="data", size=GiB(1)), OPERATOR)
        assert made_volume.operation is not None
        await made.over(made_volume.operation)
        await control.create_token("ci", "viewer", None, ADMIN)
        await control.drains.create_budget(CreateBudget(name="few", selector={"app": "web"}), ADMIN)
        await control.set_policy(PolicyChange(migrations=8), ADMIN)
        await over(made, await begin(made, "h1"))
        wanted = {
            "vm/web": "power", "host/h2": "agent", "image/tiny": "digest", "backup/nightly": "state",
            "volume/data": "state", "token/ci": "role", "budget/few": "selector", "cluster/policy": "policy.migrations",
        }  # fmt: skip
        for subject, field in wanted.items():
            at = made.fleet.find(*subject.split("/"))
            change = await last_change(made.log, made.fleet, at, field)
            assert change.after not in (None, ""), subject
            assert began(decode((await chain(made.log, change.record))[-1])), subject
        drain = next(iter(made.fleet.drains))
        ended = await last_change(made.log, made.fleet, made.fleet.find("drain", drain), "state")
        assert (ended.before, ended.after) == ("running", "done")
        with pytest.raises(Rejected, match="names nothing"):
            made.fleet.find("planet", "mars")
