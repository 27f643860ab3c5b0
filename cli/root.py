"""The operator's command line: an HTTP client. Parses, runs one command, and turns its end into an exit status.

Must stay quick to import: names of commands stand in tables, commands are loaded when they are used, and nothing
above the core is ever imported.
"""

import os
import sys
from collections.abc import Sequence

import click

from cli.session import Session
from cli.verbs import Entry, Group, shared_options

THINGS, CLUSTER, HERE, LEARN = "Things", "Cluster", "This machine", "Learn"

ENTRIES = {
    "vm": Entry("cli.commands.vm:vm", "Create, run, change and delete virtual machines.", THINGS),
    "host": Entry("cli.commands.host:host", "Enrol, cordon and describe hosts.", THINGS),
    "drain": Entry("cli.commands.drain:drain", "Watch, look into and cancel drains of hosts.", THINGS),
    "plan": Entry("cli.commands.plan:plan", "Carry out or discard stored plans.", THINGS),
    "budget": Entry("cli.commands.budget:budget", "Bound how many VMs of a group are away at once.", THINGS),
    "backup": Entry("cli.commands.backup:backup", "Verify, restore and delete backups of VMs.", THINGS),
    "volume": Entry("cli.commands.volume:volume", "Disks that outlive VMs and go from one to another.", THINGS),
    "image": Entry("cli.commands.image:image", "Bring in and remove images.", THINGS),
    "op": Entry("cli.commands.op:op", "Watch, wait for and cancel operations.", THINGS),
    "event": Entry("cli.commands.event:event", "Read the log: who did what, when and why.", THINGS),
    "why": Entry("cli.commands.why:why", "The chain of causes behind one value.", THINGS),
    "events": Entry("cli.commands.event:event", "The same as event.", THINGS, hidden=True),
    "diff": Entry("cli.commands.diff:diff", "What differs between two moments, and who did it.", THINGS),
    "audit": Entry("cli.commands.audit:audit", "Prove that the log is what it was: verify, export, witness.", CLUSTER),
    "token": Entry("cli.commands.token:token", "Create and revoke API tokens.", THINGS),
    "cluster": Entry("cli.commands.cluster:cluster", "The cluster's policy: look at it, change it.", CLUSTER),
    "status": Entry("cli.commands.cluster:status", "The cluster at a glance.", CLUSTER),
    "doctor": Entry("cli.commands.cluster:doctor", "Check every part and say how to mend it.", CLUSTER),
    "projection": Entry(
        "cli.commands.cluster:projection", "The read models: their state, a rebuild.", CLUSTER
    ),
    "api": Entry("cli.commands.cluster:api", "Send a request to the API as it is.", CLUSTER),
    "context": Entry("cli.commands.context:context", "Choose the cluster to talk to.", HERE),
    "login": Entry("cli.commands.context:login", "Keep a token for a context.", HERE),
    "whoami": Entry("cli.commands.cluster:whoami", "Whose token is in use and what it may do.", HERE),
    "server": Entry("cli.commands.server:server", "Run the server on this machine.", HERE),
    "dev": Entry("cli.commands.server:dev", "A whole cluster for trying out, on this machine.", HERE),
    "completion": Entry("cli.commands.learn:completion", "Completion for bash, zsh or fish.", HERE),
    "explain": Entry("cli.commands.learn:explain", "What an error code or a field means.", LEARN),
    "schema": Entry("cli.commands.learn:schema", "JSON Schemas of requests and answers.", LEARN),
}

FOREIGN = {
    "get": "vmorch vm list (or: host, image, op list)",
    "ls": "vmorch vm list",
    "ps": "vmorch vm list",
    "list": "vmorch vm list",
    "dominfo": "vmorch vm describe NAME",
    "domstate": "vmorch vm describe NAME",
    "dumpxml": "vmorch vm describe NAME -o json",
    "describe": "vmorch vm describe NAME",
    "show": "vmorch vm describe NAME",
    "info": "vmorch vm describe NAME",
    "run": "vmorch vm create NAME --image IMAGE",
    "launch": "vmorch vm create NAME --image IMAGE",
    "create": "vmorch vm create NAME --image IMAGE",
    "define": "vmorch vm create NAME --image IMAGE",
    "start": "vmorch vm start NAME",
    "stop": "vmorch vm stop NAME",
    "shutdown": "vmorch vm stop NAME",
    "destroy": "vmorch vm stop NAME --force (delete also removes its disks)",
    "reboot": "vmorch vm reboot NAME",
    "restart": "vmorch vm reboot NAME",
    "suspend": "vmorch vm pause NAME",
    "resume": "vmorch vm resume NAME",
    "delete": "vmorch vm delete NAME",
    "rm": "vmorch vm delete NAME",
    "undefine": "vmorch vm delete NAME --keep-disks",
    "setmem": "vmorch vm resize NAME --memory SIZE",
    "setvcpus": "vmorch vm resize NAME --vcpus N",
    "scale": "vmorch vm resize NAME",
    "snapshot": "vmorch vm snapshot create NAME",
    "snapshots": "vmorch vm snapshot list NAME",
    "snapshot-create": "vmorch vm snapshot create NAME",
    "snapshot-create-as": "vmorch vm snapshot create NAME --name SNAPSHOT",
    "snapshot-list": "vmorch vm snapshot list NAME",
    "snapshot-info": "vmorch vm snapshot describe NAME SNAPSHOT",
    "snapshot-delete": "vmorch vm snapshot delete NAME SNAPSHOT",
    "snapshot-revert": "vmorch vm rollback NAME --to SNAPSHOT",
    "rollback": "vmorch vm rollback NAME --to SNAPSHOT",
    "revert": "vmorch vm rollback NAME --to SNAPSHOT",
    "restore": "vmorch backup restore BACKUP --name NEW (or: vmorch vm rollback NAME --to SNAPSHOT)",
    "cordon": "vmorch host cordon HOST",
    "uncordon": "vmorch host uncordon HOST",
    "evacuate": "vmorch host drain HOST",
    "maintenance": "vmorch host maintenance HOST...",
    "apply": "vmorch plan apply PLAN",
    "nodeinfo": "vmorch host describe HOST",
    "monitor": "vmorch event tail",
    "logs": "vmorch event list --subject vm/NAME",
    "compare": "vmorch diff -2h now vm/NAME",
    "replay": "vmorch audit replay",
    "history": "vmorch event list --subject vm/NAME",
    "config": "vmorch context list",
    "policy": "vmorch cluster describe",
    "version": "vmorch --version",
    "vms": "vmorch vm",
    "hosts": "vmorch host",
    "node": "vmorch host",
    "nodes": "vmorch host",
    "drains": "vmorch drain",
    "plans": "vmorch plan",
    "budgets": "vmorch budget",
    "backups": "vmorch backup",
    "volumes": "vmorch volume",
    "disk": "vmorch volume",
    "attach-disk": "vmorch volume attach VOLUME VM",
    "detach-disk": "vmorch volume detach VOLUME",
    "vol-create": "vmorch volume create NAME --size SIZE",
    "vol-list": "vmorch volume list",
    "vol-delete": "vmorch volume delete NAME",
    "images": "vmorch image",
    "ops": "vmorch op",
    "operation": "vmorch op",
    "operations": "vmorch op",
    "tokens": "vmorch token",
    "contexts": "vmorch context",
    "verify": "vmorch audit verify",
    "projections": "vmorch projection",
}


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("vmorch")
        except PackageNotFoundError:
            number = "unreleased"
        click.echo(f"vmorch {number}")
        ctx.exit()


root = Group(
    "vmorch",
    ENTRIES,
    help="Virtual machines on libvirt/KVM hosts. Every command: vmorch NOUN VERB.",
    foreign=FOREIGN,
    examples=(
        "vmorch vm create web-1 --image debian-13 --memory 2Gi",
        "vmorch vm list -l app=web -o wide",
        "vmorch event list --subject vm/web-1",
        "vmorch explain no-host-fits",
    ),
    params=[
        *shared_options(hidden=False),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Show the version.",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "obj": None},
    callback=lambda: None,
)


def run(arguments: Sequence[str], session: Session) -> int:
    """Run one command line and return its exit status. Everything that can go wrong is printed here."""
    from cli.problems import INTERRUPTED, Problem

    try:
        with root.make_context("vmorch", list(arguments), obj=session) as ctx:
            root.invoke(ctx)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _usage(error, session)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our answer has seen enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Problem as problem:
        return _problem(problem, session)
    except Exception as error:
        leaving = _leaving(error, session)
        if leaving is not None:
            return leaving
        if session.flags.debug:
            raise
        session.terminal.complain(
            f"error[internal-error]: {type(error).__name__}: {error}\nhint: add --debug"
        )
        return 1


def _usage(error: click.ClickException, session: Session) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    where = getattr(error, "ctx", None)
    path = where.command_path if where is not None else "vmorch"
    session.terminal.complain(f"error: {error.format_message()}\nhint: {path} --help")
    return error.exit_code


def _problem(problem: "Exception", session: Session) -> int:
    from cli.output import structured
    from cli.problems import Problem, render

    assert isinstance(problem, Problem)
    try:
        programs = structured(session)
    except Problem:
        # the settings themselves are what is wrong
        programs = session.flags.output in ("json", "jsonl", "yaml")
    if programs:
        session.terminal.complain(problem.document().decode())
    else:
        session.terminal.complain("\n".join(render(problem, session.terminal.paint_note)))
    return problem.exit_code


def _leaving(error: Exception, session: Session) -> int | None:
    """The exit status of somebody who stopped waiting, after telling how to come back; None for anything else."""
    from cli.follow import Left, farewell

    if not isinstance(error, Left):
        return None
    session.terminal.complain("\n".join(farewell(error)) or error.why)
    return error.exit_code

