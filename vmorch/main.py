"""The server's one composition root: settings in, a running control plane out."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

import click
import psycopg
import structlog
import uvloop
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette

from vmorch import __version__
from vmorch.archiving import archive, archives, restore
from vmorch.bus.credentials import ControlKeys, ensure_keys, publisher_credentials, reader_file, server_credentials
from vmorch.bus.jetstream import Limits, Stream
from vmorch.bus.keys import BadKey
from vmorch.bus.link import Link
from vmorch.config import DEFAULT_PATH, BadConfig, Config, load
from vmorch.core.errors import Rejected
from vmorch.edge.app import build_app
from vmorch.edge.images import ImageStore
from vmorch.edge.serve import serve
from vmorch.edge.settings import GIB, EdgeSettings
from vmorch.engine.authority import ensure_authority
from vmorch.engine.checkpoints import Checkpoints
from vmorch.engine.control import Control, Identity
from vmorch.engine.history import History
from vmorch.engine.logkeys import LogKeys, log_origin
from vmorch.engine.masterkey import read_master_key
from vmorch.engine.published import Published
from vmorch.engine.sealer import Sealer
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.log.errors import LogError
from vmorch.log.folding import uncollected
from vmorch.log.keyring import PostgresKeyring
from vmorch.log.leadership import lead_while_elected
from vmorch.log.seals import Seals
from vmorch.log.state_store import StateStore
from vmorch.log.store import EventLog
from vmorch.setup import prepare, secrets_key
from vmorch.system import SystemClock, log_to_stderr, new_id, secrets_of
from vmorch.views.projector import Projector
from vmorch.views.queries import ReadModels
from vmorch.wire import subjects

logger = structlog.get_logger()

T = TypeVar("T")

PARTITIONS = 60.0
"""Seconds between looks whether the log has partitions ahead of need."""


async def run(config: Config, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    async with AsyncExitStack() as stack:
        log = await EventLog.open(config.database.url, config.archives_dir)
        stack.push_async_callback(log.close)
        engine = create_async_engine(
            config.database.url.replace("postgresql://", "postgresql+psycopg://", 1), pool_size=10, pool_pre_ping=True
        )
        stack.push_async_callback(engine.dispose)
        keys = ensure_keys(config.data_dir / "keys")
        cluster = config.server.cluster
        link = await Link.connect(
            config.nats.url,
            f"server-{cluster}",
            lambda: server_credentials(keys, cluster, datetime.now(UTC)),
            keys.server,
            subjects.server_inbox(cluster),
        )
        stack.push_async_callback(link.close)
        published = await _published(config, log, keys, stack)
        projector = Projector(log, engine)
        lifetime = timedelta(days=config.certificates.days)
        authority = ensure_authority(config.data_dir / "keys", cluster, datetime.now(UTC), lifetime)
        identity = Identity(cluster=cluster, nats_url=config.nats.url, keys=keys, authority=authority)
        keyring = PostgresKeyring(config.database.url)
        stack.push_async_callback(keyring.close)
        subject_keys = SubjectKeys(keyring, read_master_key(config.data_dir / "keys"), os.urandom)
        await subject_keys.agree()
        secrets = secrets_of(secrets_key(config.data_dir))
        control = Control(
            log, link, projector.reached, identity, SystemClock(), new_id, secrets, subject_keys
        )
        seals = Seals(config.database.url)
        stack.push_async_callback(seals.close)
        log_keys = LogKeys(config.data_dir / "keys", log_origin(cluster, log.incarnation))
        sealer = Sealer(log, seals, log_keys, control.recorder, SystemClock())
        with uncollected():
            await projector.start()
            await control.start()
            # what was folded here stays: it need not be walked later either
            gc.freeze()
        states = StateStore(config.database.url, archives=config.archives_dir)
        stack.push_async_callback(states.close)
        history = History(log, states)
        # a history of its own: whoever asks about the past does not wait for a checkpoint that is being made
        checkpoints = Checkpoints(History(log, states), states)

        async def lead() -> None:
            # no group of tasks: what ends the one is to be seen as it is by whoever lets this process lead again
            tasks = [control.lead(), checkpoints.run(), sealer.run()]
            if published is not None:
                tasks.append(published.run())
            leading = [asyncio.ensure_future(each) for each in tasks]
            try:
                over, _ = await asyncio.wait(leading, return_when=asyncio.FIRST_COMPLETED)
                for each in over:
                    each.result()
            finally:
                for each in leading:
                    each.cancel()
                await asyncio.gather(*leading, return_exceptions=True)

        app = _app(config, control, ReadModels(engine, projector), log, seals, link, history, published)
        unix = None if config.server.listen_unix is None else Path(config.server.listen_unix)
        logger.info("serving", cluster=cluster, unix=config.server.listen_unix, tcp=config.server.listen_tcp)
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(control.world.follow(), name="world"),
                group.create_task(lead_while_elected(config.database.url, lead), name="lead"),
                group.create_task(projector.run(), name="projector"),
                group.create_task(_keep_partitions(log), name="partitions"),
            ]
            await serve(app, unix, config.server.listen_tcp, stop)
            for task in background:
                task.cancel()


async def _published(config: Config, log: EventLog, keys: ControlKeys, stack: AsyncExitStack) -> Published | None:
    """The published log over a link of its own, since its account is another than the hosts'."""
    if not config.published.enabled:
        return None
    cluster = config.server.cluster
    link = await Link.connect(
        config.nats.url,
        f"publisher-{cluster}",
        lambda: publisher_credentials(keys, cluster, datetime.now(UTC)),
        keys.publisher,
        subjects.publisher_inbox(cluster),
    )
    stack.push_async_callback(link.close)
    stream = Stream(link, subjects.published_stream(cluster), subjects.published_log(cluster))
    kept = timedelta(days=config.published.days)
    limits = Limits(seconds=int(kept.total_seconds()), bytes=int(config.published.gib * GIB))
    return Published(log, stream, cluster, limits, SystemClock())


def _app(
    config: Config,
    control: Control,
    models: ReadModels,
    log: EventLog,
    seals: Seals,
    link: Link,
    history: History,
    published: Published | None,
) -> Starlette:
    settings = EdgeSettings(
        cluster=config.server.cluster,
        version=__version__,
        allowed_networks=tuple(ip_network(each) for each in config.images.allowed_networks),
        max_image_bytes=config.images.max_gib * GIB,
        max_virtual_size=config.images.max_virtual_gib * GIB,
    )
    images = ImageStore(config.data_dir / "images")
    return build_app(
        control, models, log, seals, images, settings, bus=link, history=history, published=published
    )


async def _keep_partitions(log: EventLog) -> None:
    while True:
        await asyncio.sleep(PARTITIONS)
        try:
            await log.ensure_partitions()
        except LogError as error:
            logger.error("partitions could not be made ahead", why=str(error))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The vmorch server."""


_config = click.option(
    "--config", "path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True,
    help="The server's settings.",
)


@main.command()
@_config
@click.option(
    "--new-authority",
    is_flag=True,
    help="The authority in DATA_DIR/keys signs hosts' certificates from now on, in place of one that was lost.",
)
@click.option(
    "--new-log-key",
    is_flag=True,
    help="A new key signs the log's checkpoints from now on. The one in force vouches for it, unless it was lost.",
)
@click.option(
    "--new-master-key",
    is_flag=True,
    help="A new key wraps the keys of what is sealed in the log from now on, in place of one that was lost.",
)
@click.option(
    "--partition-size",
    type=click.IntRange(1000),
    metavar="N",
    help="Later partitions of the log hold so many events. At first 10 million; those in use stay as they are.",
)
def init(
    path: Path, new_authority: bool, new_log_key: bool, new_master_key: bool, partition_size: int | None
) -> None:
    """Make what a cluster needs before its first start; harmless to repeat.

    Creates database, roles and schema, the control plane's keys, the authority that signs hosts' certificates, the
    key that signs the log's checkpoints, the master key of what is sealed in the log, the NATS server's configuration,
    and an admin's token in DATA_DIR/admin.token.

    Example: vmorch server init --config /etc/vmorch/server.toml
    """
    wanted = {"new_authority": new_authority, "new_log_key": new_log_key, "new_master_key": new_master_key}
    _run(prepare(_load(path), partition_size=partition_size, **wanted))


@main.command(name="reader")
@_config
@click.option(
    "--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long the credential is valid."
)
@click.argument("name")
def reader_command(path: Path, name: str, days: int) -> None:
    """Print a NATS credentials file for one reader of the published log.

    NAME is one word; the reader's consumer and the prefix of its inbox, _INBOX_reader_NAME, are called after it.

    Example: vmorch server reader audit --days 30 > audit.creds
    """
    config = _load(path)
    try:
        keys = ensure_keys(config.data_dir / "keys")
        click.echo(reader_file(keys, config.server.cluster, name, datetime.now(UTC), timedelta(days=days)), nl=False)
    except (OSError, BadKey, ValueError) as error:
        raise click.ClickException(str(error)) from error


@main.group(name="archive", invoke_without_command=True)
@_config
@click.option(
    "--before", metavar="MOMENT", help="How long ago, such as 90d, a time, or @POSITION. What is later stays."
)
@click.option("--dry-run", is_flag=True, help="Only tell what would go, and how large it is in Postgres.")
@click.pass_context
def archive_command(context: click.Context, path: Path, before: str | None, dry_run: bool) -> None:
    """Write old partitions of the log to files that prove themselves, and take them out of Postgres.

    Whole partitions go whose events are all older than --before. Each is read back and held against what was sealed
    before it leaves Postgres; servers go on answering for it from its file. Killed at any moment, it is repeated.

    Example: vmorch server archive --before 90d --dry-run
    """
    context.obj = path
    if context.invoked_subcommand is not None:
        return
    if before is None:
        raise click.UsageError("--before says what is old, such as --before 90d")
    found = _run(archive(_load(path), before, _tell, dry_run=dry_run))
    if not found:
        click.echo("No partition of the log is that old.", err=True)
    for each in found:
        said = "would go" if dry_run else "archived"
        click.echo(f"{each.first}-{each.last}  {_mib(each.size)} in Postgres  {said}")


@archive_command.command(name="list")
@click.option("--config", "named", type=click.Path(path_type=Path), help="The server's settings.")
@click.pass_obj
def archives_command(path: Path, named: Path | None) -> None:
    """Every archive: its positions, when they were recorded, its file, and whether that is there.

    Example: vmorch server archive list
    """
    found = _run(archives(_load(named or path)))
    if not found:
        click.echo("No partition of the log is archived.", err=True)
    for each, there in found:
        span = f"{each.began_at:%Y-%m-%dT%H:%MZ}  {each.ended_at:%Y-%m-%dT%H:%MZ}"
        click.echo(f"{each.first}-{each.last}  {span}  {_mib(each.size)}  {each.file}  {'ok' if there else 'MISSING'}")


@main.command(name="restore-archive")
@_config
@click.argument("which", metavar="FILE|FIRST-LAST")
def restore_command(path: Path, which: str) -> None:
    """Put archived events back into Postgres, checked against what was sealed. Their files stay.

    Example: vmorch server restore-archive 1-9999999
    """
    for each in _run(restore(_load(path), which, _tell)):
        click.echo(f"{each.first}-{each.last}  restored from {each.file}")


@main.command(name="run")
@_config
def run_command(path: Path) -> None:
    """Serve until SIGTERM or SIGINT.

    Example: vmorch server run --config /etc/vmorch/server.toml
    """
    config = _load(path)
    log_to_stderr()

    async def serving() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run(config, stop)

    _run(serving())


def _load(path: Path) -> Config:
    try:
        return load(path)
    except BadConfig as error:
        raise click.ClickException(str(error)) from error


def _tell(stage: str, position: int) -> None:
    """Progress, on a line that is written over where there are eyes to see it."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{stage} @{position}", err=True, nl=stage in ("archived", "restored"))
    elif stage in ("archived", "restored"):
        click.echo(f"{stage} up to @{position}", err=True)


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.1f} MiB"


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return uvloop.run(work)
    except Rejected as refusal:
        raise click.ClickException(f"{refusal.reason} [{refusal.code}]\nhint: {refusal.hint}") from refusal
    except LogError as error:
        raise click.ClickException(f"{error} [{error.code}]") from error
    except (OSError, BadKey, psycopg.Error) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
