"""Agents die at random moments, over and over: nothing happens twice, nothing is forgotten, everything ends."""

import random
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos.traffic import (
    Traffic,
    assert_boots_are_recorded,
    assert_journals_are_drained,
    assert_nothing_happened_twice,
    assert_shown_is_what_is,
    head,
    lifecycle_events,
)
from tests.integration.lab_fixtures import Site, needs_lab, until

pytestmark = [*needs_lab, pytest.mark.timeout(300)]

KILLS = 50
LONGEST_LIFE = 1.0
"""Seconds that an agent is left alone once it is connected; an operation of the traffic takes less."""


def kill_repeatedly(site: Site, host: str, times: int, chance: random.Random) -> None:
    """Kill a host's agent again and again: mostly some time after it has connected, sometimes while it starts."""
    machine = site.host(host)
    moment = threading.Event()
    for _ in range(times):
        if chance.random() < 0.8:
            since = site.api.host(host)["since"]
            until(lambda since=since: site.api.host(host)["since"] != since, 30, f"a new session of {host}")  # type: ignore[misc]
        moment.wait(chance.uniform(0, LONGEST_LIFE))
        machine.kill("agent")
        machine.start("agent")


def test_fifty_kills_do_nothing_twice_and_lose_nothing(site: Site) -> None:
    seed = secrets.randbits(32)
    after = head(site)
    hosts = [host.name for host in site.lab.hosts]
    with lifecycle_events(site) as told:
        with Traffic(site, seed) as traffic, ThreadPoolExecutor() as pool:
            for host in hosts:
                site.host(host).kill("agent")
                site.host(host).start("agent")
            killers = [
                pool.submit(kill_repeatedly, site, host, KILLS // len(hosts), random.Random(f"{seed}/{host}"))
                for host in hosts
            ]
            for killer in killers:
                killer.result()
            traffic.goes_on(len(hosts))
            traffic.finish()
        assert_shown_is_what_is(site)
    traffic.assert_all_succeeded()
    assert_nothing_happened_twice(site, after, told)
    assert_boots_are_recorded(site, after)
    assert_journals_are_drained(site, after)
