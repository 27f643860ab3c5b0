"""Change the limits of a passage under way, or let it end now by switching its guest over."""

from collections.abc import Callable
from typing import Any

import libvirt

from hostagent.commands._aside import Call
from hostagent.commands._domain import find, need, observe
from hostagent.commands._errors import refusal_of
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.commands._route import MOST_BANDWIDTH
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, TuneMigration

_SECONDS = 15.0
"""How long QEMU has for each answer; one that is stuck in the switch-over gives none."""


def _reached(command: TuneMigration, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None or not host.passages.moving(command.vm):
        return False
    if command.postcopy and observe(host, domain).reason != "postcopy":
        return False
    if command.max_downtime is not None and domain.migrateGetMaxDowntime() != _milliseconds(command.max_downtime):
        return False
    return command.bandwidth is None or domain.migrateGetMaxSpeed() == _speed(command.bandwidth)


@handles(TuneMigration, reached=_reached)
def tune_migration(command: TuneMigration, host: Host, scope: Scope) -> Done:
    if not host.passages.moving(command.vm):
        raise Rejected("libvirt-refused", "no migration of the domain is under way")
    seen = observe(host, need(host, command.vm))
    with host.link.line() as line:
        domain = line.lookupByUUIDString(command.vm)
        if command.max_downtime is not None:
            downtime = _milliseconds(command.max_downtime)
            _ask(host, scope, lambda: domain.migrateSetMaxDowntime(downtime))
        if command.bandwidth is not None:
            speed = _speed(command.bandwidth)
            for flags in (0, libvirt.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY):
                _ask(host, scope, _setting_speed(domain, speed, flags))
        if command.postcopy and seen.reason != "postcopy":
            _ask(host, scope, domain.migrateStartPostCopy)
    host.passages.tuned(command.vm, command.max_downtime)
    return Done(observed=observe(host, need(host, command.vm)))


def _setting_speed(domain: Any, speed: int, flags: int) -> Callable[[], object]:
    return lambda: domain.migrateSetMaxSpeed(speed, flags)


def _ask(host: Host, scope: Scope, call: Callable[[], object]) -> None:
    asked = Call(call)
    if not asked.over.wait(min(_SECONDS, scope.remaining())):
        raise Rejected("busy", "QEMU does not answer; it may be in the switch-over")
    if asked.error is not None:
        raise refusal_of(asked.error, host.link)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _speed(bandwidth: int) -> int:
    return bandwidth or MOST_BANDWIDTH
