"""An agent and its control plane: what is told, what is done, and what survives."""

import asyncio
import time
from pathlib import Path

from scripted import ControlPlane, agent, host, new_vm, provisioning, simulated, until

from hostagent.simulated import SimulatedHypervisor
from vmorch.bus.memory import MemoryBus
from vmorch.core.hostcommands import CreateDisk, Done, Failed, StartDomain, StopDomain
from vmorch.core.hypervisor import LibvirtHost, after_crash
from vmorch.core.ids import VmId
from vmorch.wire.envelopes import Answered, Hello, Seen, SeenUnmanaged


def test_an_agent_says_hello_and_carries_out_orders_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            hello = plane.items[0]
            assert isinstance(hello, Hello)
            assert hello.domains == {}
            orders = [plane.order(command) for command in provisioning(vm)]
            receipts = [await plane.send(order) for order in orders]
            assert all(receipt.accepted for receipt in receipts)
            await until(lambda: len(plane.answers()) == 3)
            assert list(plane.answers()) == [order.id for order in orders]
            last = plane.answers()[orders[-1].id]
            assert isinstance(last, Done)
            assert last.observed is not None
            assert last.observed.power == "running"
            await until(lambda: plane.beats)
            assert plane.beats[0].session == plane.session

    asyncio.run(scenario())


def test_an_answer_is_on_the_wire_soon_after_its_effect(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            delays = []
            for index in range(60):
                ended: list[float] = []
                hypervisor._keep = lambda _host, ended=ended: ended.append(time.monotonic())  # type: ignore[misc]
                command = StopDomain(vm=vm, grace=0, force=True) if index % 2 else StartDomain(vm=vm)
                if index == 0:
                    for each in provisioning(vm)[:-1]:
                        await plane.do(each)
                    ended.clear()
                before = len(plane.items)
                order = plane.order(command)
                await plane.send(order)
                await until(lambda order=order: order.id in plane.answers())  # type: ignore[misc]
                told = [
                    at
                    for item, at in zip(plane.items[before:], plane.arrived[before:], strict=True)
                    if isinstance(item, Answered) and item.id == order.id
                ]
                delays.append(told[0] - ended[0])
            delays.sort()
            print("answer delay ms: median", delays[30] * 1e3, "p95", delays[57] * 1e3)
            assert delays[30] < 0.05

    asyncio.run(scenario())
