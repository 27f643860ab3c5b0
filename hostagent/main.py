"""`vmorch-agent`: the composition root of one host's agent, and the commands that set it up.

Settings, identity, libvirt and systemd come together here and nowhere else. Must not decide anything.
"""

import asyncio
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import structlog
import uvloop

from hostagent import hosting, sdnotify
from hostagent import identity as files
from hostagent.certificates import Certificates, Desk, names_of, obtain, own_address, store_of
from hostagent.checking import checks
from hostagent.config import BadConfig, Config, load_config
from hostagent.effects import real_effects
from hostagent.enrolment import EnrolmentError, default_name, enroll
from hostagent.identity import Identity
from hostagent.libvirt_settings import set_up_libvirt
from hostagent.libvirt_status import RUN_DIR, mend
from hostagent.libvirtd_reload import reload_certificates
from hostagent.logs import log_to_stderr
from hostagent.pki import BadPki
from hostagent.signed_fetch import headers
from vmorch.bus import keys
from vmorch.bus.link import UnsafeBroker

if TYPE_CHECKING:
    from hostagent.libvirt_hypervisor import LibvirtHypervisor

_log = structlog.get_logger(__name__)

_config = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file.  [default: /etc/vmorch/agent.toml]",
)


_directory = click.Path(file_okay=False, path_type=Path)


class Refused(click.ClickException):
    """Something that the operator can put right; printed with its code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} [{code}]")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """The agent of one vmorch host: carries out orders exactly once and reports what it sees."""


@main.command(
    "enroll",
    epilog="""\b
Examples:
  vmorch-agent enroll https://vmorch.example:8443 --token-file /run/vmorch-token
  vmorch-agent enroll unix:/run/vmorch/api.sock --token vmt_8f... --name rack1-07
""",
)
@click.argument("server")
@click.option("--token", envvar="VMORCH_ENROLL_TOKEN", help="The one-time token; also VMORCH_ENROLL_TOKEN.")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="A file that holds the token, - for stdin; keeps it out of the process list.",
)
@click.option("--name", help="The host's name in the cluster, if not that of its invitation.")
@click.option("--force", is_flag=True, help="Replace an identity that is already here.")
@_config
def enroll_command(
    server: str, token: str | None, token_file: Path | None, name: str | None, force: bool, path: Path | None
) -> None:
    """Make this machine a host of the cluster at SERVER, http(s)://host:port or unix:/path."""
    config = _settings(path)
    if token_file is not None:
        token = sys.stdin.read().strip() if str(token_file) == "-" else token_file.read_text().strip()
    if not token:
        raise Refused("no-token", f"give --token or --token-file: `vmorch host enroll {default_name()}` makes one")
    try:
        identity = enroll(server, token, config.state_dir, name=name or config.agent.name, force=force)
    except (EnrolmentError, keys.BadKey, files.NotEnrolled) as error:
        raise Refused(error.code, str(error)) from error
    except OSError as error:
        raise Refused("state-dir", str(error)) from error
    click.echo(f"host {identity.name} of cluster {identity.cluster} ({identity.host})")
    try:
        held = obtain(store_of(config), Desk(identity, _enrolled(config)[1]), names_of(config, identity))
        click.echo(f"certificate of {', '.join(held.names)} in {config.pki_dir}, until {held.expires:%Y-%m-%d}")
    except (EnrolmentError, BadPki, OSError) as error:
        # the host is enrolled all the same, and its agent asks again until it has one
        click.echo(f"no certificate yet, so guests cannot travel encrypted: {error}", err=True)
    click.echo("start it: systemctl enable --now vmorch-agent")


@main.command("run", epilog="\b\nExample: vmorch-agent run --config /etc/vmorch/agent.toml")
@_config
@click.option("--verbose", is_flag=True, help="Log details too.")
def run_command(path: Path | None, verbose: bool) -> None:
    """Be this host's agent until SIGTERM. VMs go on without it."""
    log_to_stderr(verbose=verbose)
    config = _settings(path)
    identity, pair = _enrolled(config)
    try:
        uvloop.run(_serve(config, identity, pair))
    except (UnsafeBroker, files.NotEnrolled) as error:
        raise Refused(error.code, str(error)) from error
    except sqlite3.OperationalError as error:
        raise Refused("journal", f"{config.state_dir / files.JOURNAL}: {error}") from error
    # threads that hang in libvirt may wake up and log at any moment, which an interpreter that ends aborts on
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@main.command("check", epilog="\b\nExample: vmorch-agent check && systemctl start vmorch-agent")
@_config
def check_command(path: Path | None) -> None:
    """See whether everything that `run` needs is there; changes nothing."""
    config = _settings(path)
    failed = False
    for check in checks(config, hypervisor_of):
        failed = failed or not check.ok
        click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.subject}: {check.found}")
    if failed:
        raise SystemExit(1)


@main.command("setup-libvirt", epilog="\b\nExample: vmorch-agent setup-libvirt --write")
@_config
@click.option("--write", is_flag=True, help="Change libvirt's files instead of showing what to set.")
@click.option("--clear-migration", is_flag=True, help="Let guests travel unencrypted too, as the cluster's policy may.")
@click.option("--libvirt-dir", type=_directory, default=Path("/etc/libvirt"), show_default=True)
@click.option("--pki-root", type=_directory, default=Path("/etc/pki"), show_default=True)
def setup_libvirt_command(
    path: Path | None, write: bool, clear_migration: bool, libvirt_dir: Path, pki_root: Path
) -> None:
    """Set libvirt up so that guests travel encrypted with this host's certificates; harmless to repeat.

    libvirtd must be restarted afterwards. Guests survive that.
    """
    config = _settings(path)
    try:
        held = store_of(config).held()
        if held is None:
            # with settings that name files that are not there libvirtd would not start again
            raise Refused("no-certificate", f"{config.pki_dir} holds no certificate yet: start the agent first")
        for line in set_up_libvirt(config.pki_dir.absolute(), libvirt_dir, pki_root, write, clear_migration):
            click.echo(line)
    except (BadPki, OSError) as error:
        raise Refused(getattr(error, "code", "libvirt-files"), str(error)) from error
    if write:
        sockets = "systemctl enable --now libvirtd-tls.socket"
        click.echo(f"then: systemctl stop libvirtd; {sockets}; systemctl start libvirtd")


@main.command("mend-libvirt", epilog="\b\nExample: ExecStartPre=-/opt/vmorch/bin/vmorch-agent mend-libvirt")
@click.option("--run-dir", type=_directory, default=RUN_DIR, show_default=True)
def mend_libvirt_command(run_dir: Path) -> None:
    """Let libvirtd find its guests again, if it was killed in a bad moment; to be run just before it starts.

    Without it a guest whose merge was about to end, or whose backup had just begun, runs on, and libvirtd believes it
    to be off; and one that was about to begin seems to begin for ever.
    """
    try:
        for line in mend(run_dir):
            click.echo(line)
    except OSError as error:
        raise Refused("libvirt-files", str(error)) from error


def _settings(path: Path | None) -> Config:
    try:
        return load_config(path)
    except BadConfig as error:
        raise Refused(error.code, str(error)) from error


def _enrolled(config: Config) -> tuple[Identity, keys.KeyPair]:
    try:
        identity = files.load_identity(config.state_dir)
        return identity, keys.load(config.state_dir / files.KEY, "user")
    except (files.NotEnrolled, keys.BadKey) as error:
        raise Refused(error.code, str(error)) from error
    except FileNotFoundError as error:
        raise Refused("no-host-key", f"{error.filename} is gone: enroll again with --force") from error


def hypervisor_of(config: Config, identity: Identity, pair: keys.KeyPair) -> "LibvirtHypervisor":
    """This machine's libvirt, as configured. Raises HypervisorLost if it must answer at once and does not."""
    # libvirt is a C library that only this command needs
    from hostagent.libvirt_hypervisor import LibvirtHypervisor

    shared = config.storage.shared_dir
    return LibvirtHypervisor(
        uri=config.libvirt.uri,
        local_dir=Path(config.storage.local_dir),
        shared_dir=Path(shared) if shared else None,
        default_network=config.network.default,
        accel=config.libvirt.accel,
        fetch_base_url=lambda: identity.server_url,
        cluster=identity.cluster,
        request_headers=lambda path: headers(path, pair, identity.host, time.time()),
        address=own_address(config),
        pki_dir=config.pki_dir,
        hooks_dir=Path(config.hooks.dir),
        backups={name: Path(directory) for name, directory in config.backups.items()},
    )


async def _serve(config: Config, identity: Identity, pair: keys.KeyPair) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        _log.info("stopping")
        sdnotify.notify("STOPPING=1")
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, end)
    watchdog = asyncio.create_task(_feed_watchdog(), name="watchdog")
    try:
        hypervisor = await asyncio.to_thread(hypervisor_of, config, identity, pair)
        effects = real_effects()
        await hosting.host(
            identity,
            pair,
            config.state_dir,
            hypervisor,
            effects,
            stop,
            lambda: sdnotify.notify(f"READY=1\nSTATUS=host {identity.name} of {identity.cluster}"),
            Certificates(
                store_of(config),
                Desk(identity, pair),
                names_of(config, identity),
                effects,
                lambda: reload_certificates(config.pki_dir.absolute()),
            ),
        )
    finally:
        watchdog.cancel()


async def _feed_watchdog() -> None:
    """Show systemd that the event loop turns, twice as often as it asks."""
    within = sdnotify.watchdog_seconds()
    while within is not None:
        sdnotify.notify("WATCHDOG=1")
        await asyncio.sleep(within / 2)


if __name__ == "__main__":
    main(prog_name="vmorch-agent")
