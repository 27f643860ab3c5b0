"""The server's one composition root: settings in, a running control plane out."""

import asyncio
import gc
import signal
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import click
import psycopg
import structlog
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette

from vmorch import __version__
from vmorch.bus.credentials import ensure_keys, server_credentials
from vmorch.bus.keys import BadKey
from vmorch.bus.link import Link
from vmorch.config import DEFAULT_PATH, BadConfig, Config, load
from vmorch.core.errors import Rejected
from vmorch.edge.app import build_app
from vmorch.edge.images import ImageStore
from vmorch.edge.serve import serve
from vmorch.edge.settings import GIB, EdgeSettings
from vmorch.engine.authority import ensure_authority
from vmorch.engine.control import Control, Identity
from vmorch.log.errors import LogError
from vmorch.log.leadership import lead_while_elected
from vmorch.log.store import EventLog
from vmorch.setup import prepare, secrets_key
from vmorch.system import SystemClock, log_to_stderr, new_id, secrets_of
from vmorch.views.projector import Projector
from vmorch.views.queries import ReadModels
from vmorch.wire import subjects

logger = structlog.get_logger()

PARTITIONS = 60.0
"""Seconds between looks whether the log has partitions ahead of need."""


async def run(config: Config, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    async with AsyncExitStack() as stack:
        log = await EventLog.open(config.database.url)
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
        projector = Projector(log, engine)
        lifetime = timedelta(days=config.certificates.days)
        authority = ensure_authority(config.data_dir / "keys", cluster, datetime.now(UTC), lifetime)
        identity = Identity(cluster=cluster, nats_url=config.nats.url, keys=keys, authority=authority)
        control = Control(
            log, link, projector.reached, identity, SystemClock(), new_id, secrets_of(secrets_key(config.data_dir))
        )
        # what is folded here stays, and a collector that walks it again and again takes a third of the time
        gc.disable()
        await projector.start()
        await control.start()
        gc.freeze()
        gc.enable()
        app = _app(config, control, ReadModels(engine, projector), log, link)
        unix = None if config.server.listen_unix is None else Path(config.server.listen_unix)
        logger.info("serving", cluster=cluster, unix=config.server.listen_unix, tcp=config.server.listen_tcp)
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(control.world.follow(), name="world"),
                group.create_task(lead_while_elected(config.database.url, control.lead), name="lead"),
                group.create_task(projector.run(), name="projector"),
                group.create_task(_keep_partitions(log), name="partitions"),
            ]
            await serve(app, unix, config.server.listen_tcp, stop)
            for task in background:
                task.cancel()


def _app(config: Config, control: Control, models: ReadModels, log: EventLog, link: Link) -> Starlette:
    settings = EdgeSettings(
        cluster=config.server.cluster,
        version=__version__,
        allowed_networks=tuple(ip_network(each) for each in config.images.allowed_networks),
        max_image_bytes=config.images.max_gib * GIB,
        max_virtual_size=config.images.max_virtual_gib * GIB,
    )
    images = ImageStore(config.data_dir / "images")
    return build_app(control, models, log, images, settings, bus=link)


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
def init(path: Path, new_authority: bool) -> None:
    """Make what a cluster needs before its first start; harmless to repeat.

    Creates database, roles and schema, the control plane's keys, the authority that signs hosts' certificates, the
    NATS server's configuration, and an admin's token in DATA_DIR/admin.token.

    Example: vmorch server init --config /etc/vmorch/server.toml
    """
    _run(prepare(_load(path), new_authority=new_authority))


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


def _run(work: object) -> None:
    try:
        asyncio.run(work)  # type: ignore[arg-type]  # both callers hand in a coroutine
    except Rejected as refusal:
        raise click.ClickException(f"{refusal.reason} [{refusal.code}]\nhint: {refusal.hint}") from refusal
    except (OSError, BadKey, LogError, psycopg.Error) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
