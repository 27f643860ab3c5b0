"""Maintenance through the log: hooks that hosts really run, a host that goes away and comes back, VMs that return."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.engine.cluster import Cluster, cluster, until
from tests.engine.test_drains import ADMIN, facts, host_of, running, vm_on
from vmorch.core.aggregates.maintenance import CancelMaintenance, Maintenance, StartMaintenance
from vmorch.core.errors import Rejected
from vmorch.core.hypervisor import LibvirtHost
from vmorch.core.ids import split_stream

pytestmark = pytest.mark.anyio


async def begin(made: Cluster, *hosts: str, **fields: object) -> str:
    command = StartMaintenance(hosts=hosts, **fields)  # type: ignore[arg-type]
    return (await made.control.upkeep.start(command, ADMIN)).subject


def maintenance(made: Cluster, id: str) -> Maintenance:
    return made.fleet.maintenances[id]


def phase(made: Cluster, id: str, host: str) -> str:
    return maintenance(made, id).stations[made.fleet.find_host(host).id].phase


async def test_a_host_is_emptied_worked_on_restarted_and_filled_again(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h2") as made:
        async with made.host("h1").agent():
            await until(lambda: made.fleet.find_host("h1").agent == "connected")
            await vm_on(made, "h1", "web")
            await vm_on(made, "h1", "cattle", eviction="stop")
            id = await begin(made, "h1", bring_back=True)
            await until(lambda: phase(made, id, "h1") == "open")
            assert host_of(made, "web") == "h2"
            assert made.host("h1").hypervisor.host.hooks == {"before-maintenance": f"{id}-before"}
        # the host is off, and its operator says that he is through before it is up again
        await made.control.upkeep.work_done("h1", ADMIN)
        async with made.host("h1").agent():
            await until(lambda: maintenance(made, id).outcome is not None)
            assert phase(made, id, "h1") == "done"
            assert made.host("h1").hypervisor.host.hooks["after-maintenance"] == f"{id}-after"
            assert running(made) == {"web": ["h1"], "cattle": ["h1"]}
            assert made.fleet.find_host("h1").cordoned is None
            caused = [fact for fact in await facts(made) if split_stream(fact.stream)[0] in ("maintenance", "drain")]
            assert {fact.meta.correlation for fact in caused} == {id}
            moved = [fact for fact in await facts(made) if fact.event.kind == "vm.migrated"]
            assert {fact.meta.correlation for fact in moved} == {id}


async def test_a_hook_that_fails_stops_a_fleet_at_its_first_host(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2", "h3") as made:
        def failing(host: LibvirtHost) -> LibvirtHost:
            return replace(host, failing_hooks=frozenset({"before-maintenance"}))

        made.host("h1").hypervisor.tamper(failing)
        id = await begin(made, "h1", "h2")
        await until(lambda: maintenance(made, id).outcome is not None)
        assert maintenance(made, id).outcome == "failed"
        assert (phase(made, id, "h1"), phase(made, id, "h2")) == ("failed", "waiting")
        station = maintenance(made, id).stations[made.fleet.find_host("h1").id]
        assert station.message == "before-maintenance ended with 1"


async def test_hosts_follow_each_other(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2", "h3") as made:
        await vm_on(made, "h1", "web-1")
        await vm_on(made, "h2", "web-2")
        id = await begin(made, "h1", "h2")
        for host in ("h1", "h2"):
            await until(lambda host=host: phase(made, id, host) == "open")  # type: ignore[misc]
            await made.control.upkeep.work_done(host, ADMIN)
        await until(lambda: maintenance(made, id).outcome is not None)
        assert maintenance(made, id).outcome == "done"
        assert all(len(where) == 1 for where in running(made).values())


async def test_a_cancelled_maintenance_puts_everything_back(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await vm_on(made, "h1", "web")
        id = await begin(made, "h1")
        await until(lambda: phase(made, id, "h1") == "open")
        with pytest.raises(Rejected, match="in maintenance"):
            await made.control.on_host("h1", "uncordon", {}, ADMIN)
        await made.control.upkeep.cancel(id, CancelMaintenance(bring_back=True), ADMIN)
        await until(lambda: maintenance(made, id).outcome is not None)
        assert (maintenance(made, id).outcome, phase(made, id, "h1")) == ("cancelled", "undone")
        assert running(made) == {"web": ["h1"]}
        assert made.fleet.find_host("h1").cordoned is None


async def test_another_server_goes_on_with_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await vm_on(made, "h1", "web")
        id = await begin(made, "h1")
        async with made.plane():
            await until(lambda: phase(made, id, "h1") == "open")
            await made.control.upkeep.work_done("h1", ADMIN)
            await until(lambda: maintenance(made, id).outcome is not None)
            assert maintenance(made, id).outcome == "done"
