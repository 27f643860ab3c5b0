"""Run the host's own script for an occasion."""

from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Done, RunHook


def _reached(command: RunHook, host: Host) -> bool:
    return host.hooks.has_run(command.name, command.run)


@handles(RunHook, reached=_reached)
def run_hook(command: RunHook, host: Host, scope: Scope) -> Done:
    already = host.hooks.has_run(command.name, command.run)
    if not already:
        host.hooks.run(command.name, command.run, scope)
    return Done(already=already)
