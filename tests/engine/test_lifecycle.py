"""From a command to a running guest and back, through the log, with real agents on simulated hosts."""

import asyncio
from pathlib import Path

import pytest

from tests.engine.cluster import OPERATOR, Cluster, cluster, until
from vmorch.core.aggregates.host import HostUnreachable
from vmorch.core.codec import decode
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Failed
from vmorch.core.ids import MiB, Position, RequestId
from vmorch.core.operations.create import CreateVm
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.rename import RenameVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.engine.caller import Caller

pytestmark = pytest.mark.anyio


async def test_a_vm_is_created_stopped_started_and_deleted(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        accepted = await made.create("web")
        assert accepted.operation is not None
        assert (await made.over(accepted.operation)).outcome == "succeeded"
        assert made.vm("web").power == "running"
        assert (await made.do("web", StopVm())).outcome == "succeeded"
        assert made.vm("web").power == "off"
        assert (await made.do("web", StartVm())).outcome == "succeeded"
        assert (await made.do("web", DeleteVm())).outcome == "succeeded"
        assert not made.host("h1").hypervisor.host.domains
        assert not next(iter(made.fleet.hosts.values())).reservations


async def test_every_event_of_an_operation_names_its_actor_reason_and_operation(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        accepted = await made.create("web")
        assert accepted.operation is not None
        await made.over(accepted.operation)
        facts = [decode(record) for record in await made.log.read(Position(0), 10_000)]
        started = [fact for fact in facts if fact.meta.operation == accepted.operation]
        assert {fact.meta.actor for fact in started} == {"ada"}
        assert {fact.meta.reason for fact in started} == {"test"}


async def test_a_repeated_request_gives_the_same_answer_and_one_vm(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        caller = Caller(actor="ada", role="operator", request=RequestId("r-1"))
        command = CreateVm(name="web", image="tiny", memory=MiB(512))
        answers = [await made.control.create_vm(command, caller) for _ in range(3)]
        assert len({answer.operation for answer in answers}) == 1
        with pytest.raises(Rejected, match="was used for another request"):
            await made.control.create_vm(CreateVm(name="shop", image="tiny", memory=MiB(512)), caller)


async def test_fifty_concurrent_creates_promise_no_more_than_the_hosts_have(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made, made.host("h1", 8192).agent(), made.host("h2", 8192).agent():
        await until(lambda: sum(host.agent == "connected" for host in made.fleet.hosts.values()) == 2)
        wanted = [made.create(f"vm-{index}", memory=MiB(1024)) for index in range(50)]
        outcomes = await asyncio.gather(*wanted, return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, Rejected)]
        assert len(refused) == 34
        assert {each.code for each in refused} == {"no-host-fits"}
        for accepted in outcomes:
            if not isinstance(accepted, BaseException):
                assert (await made.over(accepted.operation)).outcome == "succeeded"  # type: ignore[arg-type]
        for host in made.fleet.hosts.values():
            assert host.promised().memory <= host.total().memory


async def test_one_of_two_creates_of_the_same_name_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        outcomes = await asyncio.gather(made.create("web"), made.create("web"), return_exceptions=True)
        assert [each.code for each in outcomes if isinstance(each, Rejected)] == ["name-taken"]


async def test_a_name_is_free_again_after_a_rename_and_after_a_delete(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        first = await made.create("web")
        await made.over(first.operation)  # type: ignore[arg-type]
        await made.control.on_vm("web", RenameVm(name="shop"), OPERATOR)
        second = await made.create("web")
        await made.over(second.operation)  # type: ignore[arg-type]
        await made.do("web", DeleteVm())
        third = await made.create("web")
        await made.over(third.operation)  # type: ignore[arg-type]


async def test_a_step_that_libvirt_refuses_is_undone_with_its_words(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        refusal = Failed(code="libvirt-refused", message="unsupported configuration: no")
        made.host("h1").hypervisor.fail_next(refusal, "host.define-domain")
        accepted = await made.create("web")
        operation = await made.over(accepted.operation)  # type: ignore[arg-type]
        assert (operation.outcome, operation.code, operation.message) == (
            "undone",
            "libvirt-refused",
            "unsupported configuration: no",
        )
        assert not made.host("h1").hypervisor.host.disks


async def test_an_operation_goes_on_when_its_agent_comes_back(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        host = made.host("h1")
        async with host.agent():
            await until(lambda: any(each.agent == "connected" for each in made.fleet.hosts.values()))
            host.hypervisor.hang_next("host.start-domain")
            accepted = await made.create("web")
            await until(lambda: host.hypervisor.begun["host.start-domain"])
        host.hypervisor.release()
        assert made.operation(accepted.operation).outcome is None  # type: ignore[arg-type]
        async with host.agent():
            assert (await made.over(accepted.operation)).outcome == "succeeded"  # type: ignore[arg-type]
        assert host.hypervisor.effects["host.start-domain"] == 1


async def test_operations_go_on_in_the_next_control_plane(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from vmorch.log.memory import MemoryLog

    made = Cluster(MemoryLog("first", lambda: datetime.now(UTC)), tmp_path)
    host = made.host("h1")
    async with made.plane():
        await made.image()
        async with host.agent():
            await until(lambda: any(each.agent == "connected" for each in made.fleet.hosts.values()))
            host.hypervisor.hang_next("host.start-domain")
            accepted = await made.create("web")
            await until(lambda: host.hypervisor.begun["host.start-domain"])
    host.hypervisor.release()
    async with made.plane(), host.agent():
        assert (await made.over(accepted.operation)).outcome == "succeeded"  # type: ignore[arg-type]


async def test_a_silent_host_is_unreachable_and_its_vms_keep_their_last_state(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        accepted = await made.create("web")
        await made.over(accepted.operation)  # type: ignore[arg-type]
        made.bus.cut("h1")
        await until(lambda: next(iter(made.fleet.hosts.values())).agent == "unreachable", 30)
        assert made.vm("web").power == "running"
        with pytest.raises(Rejected) as caught:
            await made.control.on_vm("web", StopVm(), OPERATOR)
        assert caught.value.code == "host-offline"
        made.bus.heal("h1")
        await until(lambda: next(iter(made.fleet.hosts.values())).agent == "connected", 30)
        kinds = [record.kind for record in await made.log.read(Position(0), 10_000)]
        assert HostUnreachable.kind in kinds


async def test_a_cancelled_create_leaves_nothing_on_the_host(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        host = made.host("h1")
        host.hypervisor.hang_next("host.await-ready")
        accepted = await made.create("web")
        await until(lambda: host.hypervisor.begun["host.await-ready"])
        await made.control.cancel(accepted.operation, OPERATOR)  # type: ignore[arg-type]
        assert (await made.over(accepted.operation)).outcome == "cancelled"  # type: ignore[arg-type]
        assert not host.hypervisor.host.domains
        assert not host.hypervisor.host.disks


async def test_a_repeated_token_request_gives_the_same_secret_and_one_token(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        caller = Caller(actor="ada", role="admin", request=RequestId("r-2"))
        answers = [await made.control.create_token("bob", "viewer", None, caller) for _ in range(2)]
        assert answers[0] == answers[1]
        assert len(made.fleet.tokens) == 1
