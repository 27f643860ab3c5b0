"""Who did what, when, why, and how it ended: every act once, whatever it took."""

from pathlib import Path

import pytest

from tests.engine.cluster import OPERATOR, Cluster, cluster, until
from tests.engine.test_drains import ADMIN, begin, over, vm_on
from vmorch.core.acts import Act
from vmorch.core.hostcommands import Failed
from vmorch.core.ids import MiB, Position, RequestId, stream
from vmorch.core.operations.label import LabelVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.spec import Placing
from vmorch.engine.caller import Caller
from vmorch.engine.history import History
from vmorch.engine.reporting import Outcome, Reporter, Wanted

pytestmark = pytest.mark.anyio

async def told(made: Cluster, *, limit: int = 1000, **wanted: object) -> list[tuple[Act, Outcome]]:
    """Everything that is reported, page by page."""
    reporter = Reporter(History(made.log, None), made.fleet)
    head, after = await made.log.head(), Position(0)
    found: list[tuple[Act, Outcome]] = []
    while True:
        report = await reporter.report(Wanted(after=after, until=head, **wanted), limit)  # type: ignore[arg-type]
        found += report.acts
        if report.next is None:
            return found
        assert report.next > after
        after = report.next


def short(acts: list[tuple[Act, Outcome]]) -> list[tuple[str, str, str]]:
    return [(act.actor, act.what, outcome.state) for act, outcome in acts]


async def test_an_operation_is_one_act_with_its_outcome(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        await vm_on(made, "h1", "web")
        await made.do("web", StopVm())
        made.host("h1").hypervisor.fail_next(Failed(code="libvirt-refused", message="no"), "host.define-domain")
        accepted = await made.create("broken", placing=Placing(host="h1"))
        assert accepted.operation is not None
        await made.over(accepted.operation)
        by_ada = await told(made, actor="ada")
        wanted = [each for each in short(by_ada) if each[1] in ("create", "stop")]
        assert wanted == [
            ("ada", "create", "succeeded"),
            ("ada", "stop", "succeeded"),
            ("ada", "create", "undone"),
        ]
        broken, outcome = by_ada[-1]
        assert (outcome.code, broken.reason, broken.details["name"]) == ("libvirt-refused", "test", "broken")
        assert broken.events > 1


async def test_what_needs_no_operation_is_done_and_what_hosts_do_is_theirs(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        await vm_on(made, "h1", "web")
        await made.control.on_vm("web", LabelVm(set={"app": "shop"}), OPERATOR)
        web = stream("vm", made.vm("web").id)
        assert short(await told(made, stream=web))[-1] == ("ada", "vm.labelled", "done")
        hosts = short(await told(made, actor="host:*"))
        assert ("host:h1", "host.enrolled", "done") in hosts
        assert not {what for _, what, _ in hosts} & {"vm.step-done", "vm.operation-finished"}


async def test_a_drain_is_an_act_and_each_move_of_it_another(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await vm_on(made, "h1", "web", max_memory=MiB(1024))
        await over(made, await begin(made, "h1"))
        await until(lambda: not any(drain.running for drain in made.fleet.drains.values()))
        acts = short(await told(made))
        assert (ADMIN.actor, "drain.planned", "done") in acts
        assert any(what == "migrate" and state == "succeeded" for _, what, state in acts)


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_pages_hold_every_act_once(tmp_path: Path, limit: int) -> None:
    async with cluster(tmp_path, "h1") as made:
        for name in ("web", "shop"):
            await vm_on(made, "h1", name)
            await made.do(name, StopVm())
        web = stream("vm", made.vm("web").id)
        for wanted in ({}, {"actor": "ada"}, {"stream": web}):
            whole = await told(made, **wanted)
            assert await told(made, limit=limit, **wanted) == whole
            positions = [act.position for act, _ in whole]
            assert positions == sorted(set(positions))


async def test_what_the_state_forgot_is_told_from_the_log(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        await vm_on(made, "h1", "web")
        for _ in range(3):
            await made.do("web", StopVm())
            await made.do("web", StartVm())
        before = await told(made, stream=stream("vm", made.vm("web").id))
        made.fleet.operations.clear()
        assert short(await told(made, stream=stream("vm", made.vm("web").id))) == short(before)



async def test_a_secret_told_again_is_an_act_of_whoever_asked(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await made.control.create_token("ops", "admin", None, ADMIN)
        ops = Caller(actor="ops", role="admin", request=RequestId("0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d"))
        for _ in range(2):
            accepted, _secret = await made.control.create_token("ci", "viewer", None, ops)
        acts = await told(made, actor="ops")
        assert short(acts) == [("ops", "token.created", "done"), ("ops", "token.audit-read", "done")]
        assert acts[-1][0].details["what"] == f"the secret of token/{accepted.subject}"
