"""What tests of several directories share: one lab of real hosts, which is made at its first use."""

from collections.abc import Iterator

import pytest

from tests.integration.lab_fixtures import Site, images_of, lab_of_this_run


@pytest.fixture(scope="session")
def lab_site() -> Iterator[Site]:
    """Two real hosts and a control plane, for the whole run."""
    for lab in lab_of_this_run():
        site = Site(lab)
        images_of(site)
        site.connected()
        yield site


@pytest.fixture
def site(lab_site: Site) -> Iterator[Site]:
    """The lab with no VM on it, before the test and after."""
    lab_site.clean()
    yield lab_site
    lab_site.clean()
