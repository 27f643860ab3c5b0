"""Wait until a guest says that it is up, then learn its addresses."""

import time
from collections.abc import Callable
from typing import Any

from hostagent.commands import _guest
from hostagent.commands._domain import need, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.probe import answers_http, answers_tcp
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import AwaitReady, Done, Observed
from vmorch.core.spec import ReadySpec

_LOOK_EVERY = 0.1
_ADDRESS_WITHIN = 5.0
"""Seconds that a guest which is up has to get an address; without one it is up all the same."""
_MARGIN = 0.5
"""Seconds kept back from the order's own deadline, so that its answer tells what was tried."""


def _reached(command: AwaitReady, host: Host) -> bool:
    domain = need(host, command.vm)
    if observe(host, domain).power != "running":
        return False
    if command.steady:
        return False
    if command.ready.by == "none":
        return True
    if _try(command, domain):
        return False
    # the agent that waited may have died before it learned them, and nobody asks for them again
    host.runs.found_at(command.vm, _addresses(command, domain) or host.runs.of(command.vm).addresses)
    return True


@handles(AwaitReady, reached=_reached)
def await_ready(command: AwaitReady, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    until = time.monotonic() + min(command.ready.within, max(0.0, scope.remaining() - _MARGIN))
    while True:
        seen = observe(host, domain)
        if seen.power not in ("running", "paused"):
            raise Rejected("not-ready", f"the guest is {seen.power}" + (f": {seen.reason}" if seen.reason else ""))
        asks = command.ready.by == "agent" and not command.known
        if seen.power == "running" and asks and (named := _guest.named_addresses(domain)):
            # an agent that names them has answered: one question to a guest takes as long as all the rest
            host.runs.found_at(command.vm, named)
            _keep_watching(command, host, domain, scope)
            return Done(observed=observe(host, domain))
        trouble = "the domain is paused" if seen.power == "paused" else _try(command, domain)
        if not trouble:
            _keep_watching(command, host, domain, scope)
            return Done(observed=_with_addresses(command, host, domain, scope))
        if time.monotonic() >= until:
            raise Rejected("not-ready", f"not up within {command.ready.within:g} s: {trouble}")
        scope.pause(_LOOK_EVERY)


def _keep_watching(command: AwaitReady, host: Host, domain: Any, scope: Scope) -> None:
    until = time.monotonic() + command.steady
    while time.monotonic() < until:
        scope.pause(_LOOK_EVERY)
        seen = observe(host, domain)
        if seen.power != "running":
            raise Rejected("not-ready", f"the guest did not go on running: it is {seen.power}")


def _try(command: AwaitReady, domain: Any) -> str:
    """Ask once. Empty if the guest is up, else what it lacks."""
    ready = command.ready
    match ready.by:
        case "none":
            return ""
        case "agent":
            return _guest.ping(domain)
        case "http":
            return _try_each(command, domain, lambda address: answers_http(address, ready.port, ready.path))
        case "tcp":
            return _try_each(command, domain, lambda address: answers_tcp(address, ready.port))


def _try_each(command: AwaitReady, domain: Any, ask: Callable[[str], str]) -> str:
    addresses = command.known or _guest.likely_addresses(domain, command.nics)
    if not addresses:
        return "the guest has no known address yet"
    troubles = []
    for address in addresses:
        trouble = ask(address)
        if not trouble:
            return ""
        troubles.append(f"{_name(command.ready, address)}: {trouble}")
    return "; ".join(troubles)


def _name(ready: ReadySpec, address: str) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{ready.port}{ready.path}" if ready.by == "http" else f"{host}:{ready.port}"


def _with_addresses(command: AwaitReady, host: Host, domain: Any, scope: Scope) -> Observed:
    if command.ready.by != "none":
        until = time.monotonic() + (_ADDRESS_WITHIN if command.nics else 0.0)
        found: tuple[str, ...] = ()
        while not found:
            found = _addresses(command, domain)
            if found or time.monotonic() >= until or scope.remaining() <= _MARGIN:
                break
            scope.pause(_LOOK_EVERY)
        host.runs.found_at(command.vm, found)
    return observe(host, domain)


def _addresses(command: AwaitReady, domain: Any) -> tuple[str, ...]:
    return command.known or _guest.named_addresses(domain) or _guest.likely_addresses(domain, command.nics)
