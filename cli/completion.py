"""Completion of names while typing: fast, from a short cache, and silent about every failure.

Must never print, ask, retry or take longer than its budget.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.problems import Problem
from cli.session import Session

BUDGET = 0.3
FRESH = 5.0
VARIABLE = "_VMORCH_COMPLETE"


class _Named(msgspec.Struct, frozen=True):
    name: str


def names(ctx: click.Context, noun: str, incomplete: str) -> list[Any]:
    """The names of all things of a noun that begin with what was typed."""
    from click.shell_completion import CompletionItem

    session = ctx.ensure_object(Session)
    try:
        known = _cached(session, noun)
    except (Problem, OSError, msgspec.DecodeError):
        # there is nobody to tell: the operator is in the middle of a line
        return []
    return [CompletionItem(name) for name in known if name.startswith(incomplete)]


def complete_vm(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """The names of VMs."""
    return names(ctx, "vms", incomplete)


def complete_host(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """The names of hosts."""
    return names(ctx, "hosts", incomplete)


def complete_snapshot(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """The names of the snapshots of the VM that was typed before."""
    from cli.transport import quote

    # after an option without its value yet, click has sorted nothing
    vm = ctx.params.get("vm") or next((each for each in ctx.args if not each.startswith("-")), None)
    return names(ctx, f"vms/{quote(vm)}/snapshots", incomplete) if isinstance(vm, str) else []


def _cached(session: Session, noun: str) -> list[str]:
    import hashlib  # here, because commands that change something name these functions

    settings = session.settings
    key = hashlib.sha256(f"{settings.api}\0{settings.token}\0{noun}".encode()).hexdigest()[:24]
    path = _cache_dir() / f"{key}.json"
    try:
        if time.time() - path.stat().st_mtime < FRESH:
            return msgspec.json.decode(path.read_bytes(), type=list[str])
    except FileNotFoundError:
        pass
    from cli.client import decode
    from cli.shapes import Listing

    # what belongs to one thing comes whole
    query = None if "/" in noun else {"limit": 1000}
    answer = session.client.get(f"/v1/{noun}", query, limit=BUDGET, patient=False)
    found = [each.name for each in decode(answer.body, Listing[_Named]).items]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(found))
    os.replace(temporary, path)
    return found


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vmorch"


def script(root: click.Command, shell: str) -> str:
    """What the shell must read to complete `vmorch`."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise Problem("bad-request", f"no completion for {shell}", hint="bash, zsh or fish")
    complete = found(root, {}, "vmorch", VARIABLE)
    # click's bash class starts a bash to look at its version before it gives the same text
    return complete.source_template % complete.source_vars()


def answer(root: click.Command) -> None:
    """Answer the shell's question in the environment and exit."""
    from click.shell_completion import shell_complete

    sys.exit(shell_complete(root, {"obj": Session()}, "vmorch", VARIABLE, os.environ[VARIABLE]))
