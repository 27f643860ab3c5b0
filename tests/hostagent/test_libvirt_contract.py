"""A real libvirt host keeps the contract of all hypervisors."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contract import HypervisorContract
from libvirt_host import ImageServer, empty_qcow2, hypervisor_on, lab_of, pin

from deploy.lab.host import Host
from hostagent.libvirt_hypervisor import LibvirtHypervisor
from vmorch.core.ids import VmId
from vmorch.core.spec import ImagePin

pytestmark = pytest.mark.libvirt


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with lab_of(1, tmp_path_factory.mktemp("libvirt")) as lab:
        yield lab.hosts[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageServer]:
    server = ImageServer(empty_qcow2(tmp_path_factory.mktemp("image")))
    yield server
    server.close()


class TestLibvirtHypervisor(HypervisorContract):
    @pytest.fixture
    def hypervisor(self, host: Host, server: ImageServer, tmp_path: Path) -> Iterator[LibvirtHypervisor]:
        hypervisor = hypervisor_on(host.uri, host.local, host.shared, server.url, tmp_path)
        yield hypervisor
        hypervisor.close()

    @pytest.fixture
    def image_pin(self, server: ImageServer) -> ImagePin:
        return pin(server.image, 64 << 20)

    @pytest.fixture
    def failing_hook(self, tmp_path: Path) -> None:
        script = tmp_path / "before-maintenance"
        script.write_text("#!/bin/sh\necho no\nexit 3\n")
        script.chmod(0o755)

    @pytest.fixture
    def stop_deaf(self) -> Callable[[VmId], None]:
        # firmware that finds nothing to boot hears no power button
        return lambda vm: None
