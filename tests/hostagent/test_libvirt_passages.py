"""Real hosts keep the contract of all passages; and what only real ones can do: lose daemons, agents and cables."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from libvirt_host import lab_of
from passages import PassageContract
from travelling_guest import RealTrip

from deploy.lab.lab import Lab
from vmorch.core.ids import VmId

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_of(2, tmp_path_factory.mktemp("passages")) as lab:
        yield lab


@pytest.fixture(scope="module")
def guest(lab: Lab) -> RealTrip:
    """One guest for all tests, which goes to and fro."""
    return RealTrip(lab, VmId(str(uuid4())), "shared")


@pytest.fixture
def trip(guest: RealTrip) -> Iterator[RealTrip]:
    guest.ready()
    yield guest
    guest.ticked_once_and_goes_on()


class TestLibvirtPassages(PassageContract):
    pass
