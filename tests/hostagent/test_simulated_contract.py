"""The simulated hypervisor keeps the contract of all hypervisors."""

from collections.abc import Callable, Iterator

import pytest
from contract import HypervisorContract
from msgspec.structs import replace
from scripted import simulated

from hostagent.simulated_hypervisor import SimulatedHypervisor
from vmorch.core.ids import Digest, VmId
from vmorch.core.spec import ImagePin


class TestSimulatedHypervisor(HypervisorContract):
    @pytest.fixture
    def hypervisor(self) -> Iterator[SimulatedHypervisor]:
        hypervisor = simulated()
        yield hypervisor
        hypervisor.close()

    @pytest.fixture
    def image_pin(self) -> ImagePin:
        return ImagePin(digest=Digest("a" * 64), format="qcow2", size=5 << 20, virtual_size=1 << 30)

    @pytest.fixture
    def failing_hook(self, hypervisor: SimulatedHypervisor) -> None:
        hypervisor.tamper(lambda host: replace(host, failing_hooks=frozenset({"before-maintenance"})))

    @pytest.fixture
    def stop_deaf(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId], None]:
        return lambda vm: hypervisor.tamper(lambda host: replace(host, deaf=host.deaf | {vm}))
