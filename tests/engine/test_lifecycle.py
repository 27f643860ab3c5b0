"""From a command to a running guest and back, through the log, with real agents on simulated hosts."""

import asyncio
from pathlib import Path

import pytest

from tests.engine.cluster import CLUSTER, OPERATOR, Cluster, cluster, until
from vmorch.bus.keys import verifier
from vmorch.core.aggregates.host import HostUnreachable
from vmorch.core.codec import decode
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, Failed, Observed
from vmorch.core.ids import MiB, Position, RequestId, SessionId, stream
from vmorch.core.operations.create import CreateVm
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.rename import RenameVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.records import Append, NewEvent, StreamAppend
from vmorch.engine.caller import Caller
from vmorch.engine.reports import order_id
from vmorch.engine.why import parent
from vmorch.wire import subjects
from vmorch.wire.envelopes import Answered, Confirmation, Hello, Report, Seen, seal, unseal

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
        own = [fact for fact in facts if fact.meta.operation == accepted.operation]
        assert {fact.meta.correlation for fact in own} == {accepted.operation}
        assert [fact.event.kind for fact in own].count("vm.step-done") == 6
        by_ada = [fact for fact in own if fact.event.kind != "vm.step-done"]
        assert {fact.meta.actor for fact in own if fact not in by_ada} == {"host:h1"}
        assert {fact.meta.actor for fact in by_ada} == {"ada"}
        assert {fact.meta.reason for fact in by_ada} == {"test"}


async def test_an_operation_ends_with_its_last_answer_by_the_hand_of_who_asked(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        accepted = await made.create("web")
        assert accepted.operation is not None
        await made.over(accepted.operation)
        records = await made.log.read(Position(0), 10_000)
        (end,) = [each for each in records if each.kind == "vm.operation-finished"]
        above = await parent(made.log, end)
        assert above is not None
        answer = records[above - 1]
        assert answer.kind == "vm.step-done"
        assert answer.recorded_at == end.recorded_at
        said, heard = decode(end).meta, decode(answer).meta
        assert (said.actor, said.reason, said.session) == ("ada", "test", None)
        assert (said.operation, said.correlation) == (accepted.operation, accepted.operation)
        assert (heard.actor, heard.session is None) == ("host:h1", False)


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


async def test_a_cancel_after_the_point_of_no_return_is_refused_and_the_delete_ends(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        accepted = await made.create("web")
        await made.over(accepted.operation)  # type: ignore[arg-type]
        host = made.host("h1")
        host.hypervisor.hang_next("host.undefine-domain")
        deleting = await made.control.on_vm("web", DeleteVm(), OPERATOR)
        await until(lambda: host.hypervisor.begun["host.undefine-domain"])
        with pytest.raises(Rejected) as caught:
            await made.control.cancel(deleting.operation, OPERATOR)  # type: ignore[arg-type]
        assert caught.value.code == "point-of-no-return"
        host.hypervisor.release()
        assert (await made.over(deleting.operation)).outcome == "succeeded"  # type: ignore[arg-type]


async def test_a_host_that_is_gone_for_ever_is_given_up_with_its_vms(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        async with made.host("h1").agent():
            await until(lambda: any(each.agent == "connected" for each in made.fleet.hosts.values()))
            accepted = await made.create("web")
            await made.over(accepted.operation)  # type: ignore[arg-type]
            with pytest.raises(Rejected) as caught:
                await made.control.on_host("h1", "retire", {"lost": True}, OPERATOR)
            assert caught.value.code == "host-connected"
        await until(lambda: next(iter(made.fleet.hosts.values())).agent == "unreachable", 30)
        with pytest.raises(Rejected) as caught:
            await made.control.on_host("h1", "retire", {}, OPERATOR)
        assert caught.value.code == "host-not-empty"
        await made.control.on_host("h1", "retire", {"lost": True}, OPERATOR)
        with pytest.raises(Rejected, match="no vm"):
            made.vm("web")
        again, _, _ = await made.control.invite_host("h1", OPERATOR)
        assert again.name == "h1"


async def test_an_unreadable_event_stops_its_vm_and_nothing_else(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        for name in ("web", "shop"):
            await made.over((await made.create(name)).operation)  # type: ignore[arg-type]
        web = made.vm("web")
        alien = NewEvent(kind="vm.from-the-future", schema=1, data=b"{}", meta=b'{"actor":"x"}')
        at = stream("vm", web.id)
        await made.log.append(Append(streams=(StreamAppend(stream=at, expected=web.version, events=(alien,)),)))
        assert (await made.do("shop", StopVm())).outcome == "succeeded"
        with pytest.raises(Rejected, match="unreadable"):
            await made.control.on_vm("web", StopVm(), OPERATOR)
        made.bus.cut("h1")
        made.bus.heal("h1")
        assert (await made.do("shop", StartVm())).outcome == "succeeded"


async def test_an_old_hello_cannot_end_a_newer_session(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        host = next(iter(made.fleet.hosts.values()))
        hello = Hello(number=0, facts=made.host("h1").facts, domains={})
        old = Report(host=host.id, session=SessionId("older"), through=0, items=(hello,))
        subject = subjects.report(CLUSTER, host.id)
        answer = await made.control.reports.handle(subject, "", seal(old, made.host("h1").keys))
        assert answer is not None
        confirmation: Confirmation = unseal(answer, Confirmation, verifier(made.keys.server.public))
        assert confirmation.code == "stale-session"
        assert made.fleet.hosts[host.id].session == host.session


async def test_what_is_seen_after_an_answer_in_the_same_report_is_recorded(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        host = made.host("h1")
        accepted = await made.create("web")
        await made.over(accepted.operation)  # type: ignore[arg-type]
        await made.do("web", StopVm())
        host.hypervisor.hang_next("host.start-domain")
        starting = await made.control.on_vm("web", StartVm(), OPERATOR)
        await until(lambda: host.hypervisor.begun["host.start-domain"] == 2)
        operation = made.operation(starting.operation)  # type: ignore[arg-type]
        answered = Answered(
            id=order_id(operation.id, 0, undo=False, attempt=1),
            answer=Done(observed=Observed(power="running", vcpus=1, memory=MiB(512))),
        )
        seen = Seen(vm=made.vm("web").id, observed=Observed(power="off", reason="crashed"))
        owner = next(iter(made.fleet.hosts.values()))
        report = Report(host=owner.id, session=owner.session, through=1, items=(answered, seen))  # type: ignore[arg-type]
        await made.control.reports.handle(subjects.report(CLUSTER, owner.id), "", seal(report, host.keys))
        assert made.vm("web").power == "off"
        host.hypervisor.release()
