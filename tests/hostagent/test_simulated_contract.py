"""The simulated hypervisor keeps the contract of all hypervisors."""

from collections.abc import Callable, Collection, Iterator

import pytest
from backup_contract import BackupContract
from contract import HypervisorContract
from layer_contract import Content, LayerContract
from msgspec.structs import replace
from scripted import TARGET, simulated
from volume_contract import VolumeContract, new_id

from hostagent.simulated_hypervisor import SimulatedHypervisor
from vmorch.core.backup import Target
from vmorch.core.hypervisor import File, LibvirtHost, content, disk_key, filled, layers, written
from vmorch.core.hypervisor_state import empty_file, with_files
from vmorch.core.ids import BackupId, Digest, GiB, VmId
from vmorch.core.spec import DiskSpec, ImagePin


@pytest.fixture
def hypervisor() -> Iterator[SimulatedHypervisor]:
    hypervisor = simulated()
    yield hypervisor
    hypervisor.close()


@pytest.fixture
def image_pin() -> ImagePin:
    return ImagePin(digest=Digest("a" * 64), format="qcow2", size=5 << 20, virtual_size=1 << 30)


class TestSimulatedHypervisor(HypervisorContract):
    @pytest.fixture
    def failing_hook(self, hypervisor: SimulatedHypervisor) -> None:
        hypervisor.tamper(lambda host: replace(host, failing_hooks=frozenset({"before-maintenance"})))

    @pytest.fixture
    def stop_deaf(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId], None]:
        return lambda vm: hypervisor.tamper(lambda host: replace(host, deaf=host.deaf | {vm}))


def layer_of(disk: str, layer: int) -> DiskSpec:
    return DiskSpec(name=disk, size=GiB(1), layer=layer)


def with_layer(host: LibvirtHost, vm: VmId, file: File) -> LibvirtHost:
    return replace(host, disks={**host.disks, vm: {**host.disks[vm], disk_key(file): file}})


def without_layer(host: LibvirtHost, vm: VmId, disk: DiskSpec) -> LibvirtHost:
    left = {key: file for key, file in host.disks[vm].items() if key != disk_key(disk)}
    return replace(host, disks={**host.disks, vm: left})


class Layers:
    """How tests reach the layers of the simulated host."""

    @pytest.fixture
    def fill(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId, str, int, int, int], None]:
        return lambda vm, disk, layer, cluster, byte: hypervisor.tamper(
            lambda host: filled(host, vm, layer_of(disk, layer), cluster, byte)
        )

    @pytest.fixture
    def content(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId, str, int], Content]:
        return lambda vm, disk, layer: content(hypervisor.host, vm, layer_of(disk, layer))

    @pytest.fixture
    def files(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId], Collection[str]]:
        def names(vm: VmId) -> Collection[str]:
            host = hypervisor.host
            keys = [*host.disks.get(vm, {}), *host.memories.get(vm, {})]
            return {key.partition("/")[2] for key in keys}

        return names

    @pytest.fixture
    def foreign_layer(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId, str, int], Callable[[], None]]:
        def add(vm: VmId, disk: str, on: int) -> Callable[[], None]:
            foreign = File(name=disk, size=GiB(1), layer=77, on=on)
            hypervisor.tamper(lambda host: with_layer(host, vm, foreign))
            return lambda: hypervisor.tamper(lambda host: without_layer(host, vm, foreign))

        return add

    @pytest.fixture
    def lost_layer(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId, str, int], Callable[[], None]]:
        def lose(vm: VmId, disk: str, layer: int) -> Callable[[], None]:
            lost = layers(hypervisor.host, vm, layer_of(disk, layer))[layer]
            hypervisor.tamper(lambda host: without_layer(host, vm, lost))
            return lambda: hypervisor.tamper(lambda host: with_layer(host, vm, lost))

        return lose

    @pytest.fixture
    def frozen_never(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId], None]:
        return lambda vm: hypervisor.tamper(lambda host: replace(host, mute=host.mute | {vm}))


class TestSimulatedLayers(Layers, LayerContract): ...


class TestSimulatedVolumes(Layers, VolumeContract):
    @pytest.fixture
    def deaf(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId], None]:
        return lambda vm: hypervisor.tamper(lambda host: replace(host, deaf=host.deaf | {vm}))

    @pytest.fixture
    def lost(self, hypervisor: SimulatedHypervisor) -> VmId:
        lost, file = new_id(), empty_file(layer_of("vda", 0))
        hypervisor.tamper(lambda host: with_files(host, lost, {disk_key(file): file}))
        return lost


class TestSimulatedBackups(Layers, BackupContract):
    @pytest.fixture
    def target(self) -> Target:
        return TARGET

    @pytest.fixture
    def guest_writes(self, hypervisor: SimulatedHypervisor) -> Callable[[VmId, str, int, int], None]:
        return lambda vm, disk, cluster, byte: hypervisor.tamper(
            lambda host: written(host, vm, disk, cluster, byte)
        )

    @pytest.fixture
    def damage(self, hypervisor: SimulatedHypervisor) -> Callable[[BackupId, str], None]:
        def change(host: LibvirtHost, backup: BackupId, disk: str) -> LibvirtHost:
            kept = host.backups[TARGET.id][backup]
            other = replace(kept, disks={**kept.disks, disk: {**kept.disks[disk], 7: 1}})
            return replace(host, backups={TARGET.id: {**host.backups[TARGET.id], backup: other}})

        return lambda backup, disk: hypervisor.tamper(lambda host: change(host, backup, disk))

    @pytest.fixture
    def kept(self, hypervisor: SimulatedHypervisor) -> Callable[[], Collection[str]]:
        return lambda: set(hypervisor.host.backups.get(TARGET.id, {}))
