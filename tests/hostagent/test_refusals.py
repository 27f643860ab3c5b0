"""What an agent refuses, so that nothing old, foreign or regressed ever has an effect."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace
from scripted import FACTS, HOST, host, new_vm, provisioning, simulated, until

from hostagent.simulated_hypervisor import SimulatedHypervisor, no_seconds
from vmorch.bus.bus import RequestTimeout
from vmorch.bus.keys import create
from vmorch.core.codec import Packed
from vmorch.core.hostcommands import CreateDisk, Done
from vmorch.core.hypervisor import LibvirtHost
from vmorch.core.ids import HostId
from vmorch.core.spec import DiskSpec
from vmorch.wire import subjects
from vmorch.wire.envelopes import Hello, Order, seal

COMMAND = provisioning(new_vm())[0]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"session": "another"}, "stale-session"),
        ({"incarnation": "another"}, "stale-incarnation"),
        ({"epoch": 0}, "stale-epoch"),
        ({"command": Packed(kind="host.format", schema=1, data={})}, "unknown-command"),
        ({"command": Packed(kind="host.start-domain", schema=1, data={})}, "unknown-command"),
        ({"command": Packed(kind="host.start-domain", schema=99, data={})}, "unknown-command"),
        ({"deadline": 0.0}, "expired"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_stale_or_unreadable_order_is_refused_with_its_code(
    tmp_path: Path, changed: dict[str, object], code: str
) -> None:
    async def scenario() -> None:
        hypervisor = simulated()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            # the VM's epoch is now 1
            assert isinstance(await plane.do(COMMAND), Done)
            receipt = await plane.send(replace(plane.order(COMMAND), **changed))
            assert (receipt.accepted, receipt.code) == (False, code)
            assert receipt.message
            assert process.journal.open_orders() == []
            assert sum(hypervisor.begun.values()) == 1

    asyncio.run(scenario())


def test_a_higher_epoch_makes_every_lower_one_stale(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with host(tmp_path, simulated()) as (plane, _, _):
            assert isinstance(await plane.do(COMMAND, epoch=5), Done)
            assert (await plane.send(plane.order(COMMAND, epoch=4))).code == "stale-epoch"
            assert (await plane.send(plane.order(COMMAND, epoch=5))).accepted
            other = provisioning(new_vm())[0]
            assert (await plane.send(plane.order(other, epoch=1))).accepted

    asyncio.run(scenario())


def test_a_forged_order_gets_no_answer_at_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = simulated()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            subject = subjects.command("lab", HOST)
            order = plane.order(COMMAND)
            forged = [
                seal(order, create("user")),
                seal(replace(order, host=HostId("h2")), plane.keys),
                seal(order, plane.keys).replace(b"vda", b"vdb"),
                b"garbage",
                b"",
            ]
            for data in forged:
                with pytest.raises(RequestTimeout):
                    await plane.link.request(subject, data, 0.1)
            assert sum(hypervisor.begun.values()) == 0
            assert process.journal.open_orders() == []

    asyncio.run(scenario())


def test_ten_thousand_replayed_old_orders_have_no_effect(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = simulated()
        async with host(tmp_path, hypervisor) as (before, _, _):
            disks = [DiskSpec(name=f"vd{letter}", size=1) for letter in "abcdefghij"]  # type: ignore[arg-type]
            vm = new_vm()
            orders = [before.order(CreateDisk(vm=vm, disk=disk), epoch=2) for disk in disks]
            for order in orders:
                await before.send(order)
            await until(lambda: len(before.answers()) == len(orders))
        begun = sum(hypervisor.begun.values())
        async with host(tmp_path, hypervisor, earlier=before) as (plane, _, _):
            now = plane.session
            for index in range(10_000):
                old = orders[index % len(orders)]
                stale: Order = [
                    old,
                    replace(old, id=f"replayed-{index}"),
                    replace(old, id=f"replayed-{index}", session=now, epoch=1),
                    replace(old, id=f"replayed-{index}", session=now, incarnation="zeroth"),
                    replace(old, session=now),
                ][index % 5]
                receipt = await plane.send(stale)
                # the last one is a repetition of what was done: it is told again, not done again
                assert receipt.accepted == (index % 5 == 4), (index, receipt)
            assert sum(hypervisor.begun.values()) == begun

    asyncio.run(scenario())


def test_a_machine_that_is_not_itself_obeys_nothing_and_still_reports(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = simulated()
        async with host(tmp_path, hypervisor) as (before, _, _):
            assert isinstance(await before.do(COMMAND), Done)
        twin = SimulatedHypervisor(replace(FACTS, machine_id="other"), LibvirtHost(foreign=("x",)), seconds=no_seconds)
        async with host(tmp_path, twin, earlier=before) as (plane, _, _):
            assert (await plane.send(plane.order(COMMAND))).code == "identity-changed"
            assert (await plane.withdraw(plane.order(COMMAND), COMMAND)).code == "identity-changed"
            assert sum(twin.begun.values()) == 0
            hello = plane.items[0]
            assert isinstance(hello, Hello)
            assert hello.unmanaged == ("x",)

    asyncio.run(scenario())


def test_an_agent_with_another_key_obeys_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = simulated()
        async with host(tmp_path, hypervisor) as (before, _, _):
            pass
        before.host_key = create("user")
        async with host(tmp_path, hypervisor, earlier=before) as (plane, _, _):
            assert (await plane.send(plane.order(COMMAND))).code == "identity-changed"
            assert sum(hypervisor.begun.values()) == 0

    asyncio.run(scenario())


def test_a_log_that_fell_back_is_not_obeyed_until_it_has_a_new_incarnation(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = simulated()
        async with host(tmp_path, hypervisor) as (before, process, _):
            before.position = 1000
            await before.do(COMMAND)
            await until(lambda: process.journal.position() > 1000)
        before.position = 10
        async with host(tmp_path, hypervisor, earlier=before) as (regressed, process, _):
            await until(lambda: process.journal.meta("regressed"))
            assert (await regressed.send(regressed.order(COMMAND))).code == "stale-incarnation"
        regressed.position = 2000
        async with host(tmp_path, hypervisor, earlier=regressed) as (still, _, _):
            assert (await still.send(still.order(COMMAND))).code == "stale-incarnation"
        still.incarnation = "second"
        async with host(tmp_path, hypervisor, earlier=still) as (plane, process, _):
            await until(lambda: process.journal.meta("incarnation") == "second")
            assert isinstance(await plane.do(COMMAND), Done)
            assert (await plane.send(plane.order(COMMAND, incarnation="first"))).code == "stale-incarnation"

    asyncio.run(scenario())


def test_an_incarnation_that_was_left_is_never_obeyed_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = simulated()
        async with host(tmp_path, hypervisor) as (plane, process, bus):
            plane.incarnation = "second"
            bus.cut("host")
            bus.heal("host")
            await until(lambda: process.journal.meta("incarnation") == "second")
            assert isinstance(await plane.do(COMMAND), Done)
            plane.incarnation = "first"
            greetings = len(plane.reports)
            bus.cut("host")
            bus.heal("host")
            await until(lambda: len(plane.reports) > greetings + 1)
            assert not (await plane.send(plane.order(COMMAND))).accepted
            assert process.journal.meta("incarnation") == "second"

    asyncio.run(scenario())
