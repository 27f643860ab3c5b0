"""The server's settings, from one TOML file. Must not read anything else, nor have defaults that surprise."""

import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

DEFAULT_PATH = Path("/etc/vmorch/server.toml")


class ServerSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`data_dir` holds keys and images; `public_url` is where hosts reach the API."""

    cluster: Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
    data_dir: str
    listen_unix: str | None = None
    listen_tcp: str | None = None
    public_url: str


class DatabaseSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`url` is the server's login; `owner_url`, needed by `init` and for archiving alone, may create roles and the
    database."""

    url: str
    owner_url: str | None = None


class NatsSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`url` is what server and hosts connect to. `init` writes the broker's configuration to `config_file`.

    The broker keeps the published log in `store_dir`; without one, in `jetstream` below the data directory.
    """

    url: str
    config_file: str
    listen: str = "127.0.0.1:4222"
    store_dir: str | None = None


class ImagesSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Networks that images may be fetched from although they are not public, and size limits in GiB."""

    allowed_networks: tuple[str, ...] = ()
    max_gib: Annotated[int, Meta(ge=1)] = 64
    max_virtual_gib: Annotated[int, Meta(ge=1)] = 2048


class CertificatesSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many days the certificates last that hosts get; each is renewed when a third of that is left."""

    days: Annotated[float, Meta(ge=1 / 24, le=825)] = 90.0


class PublishedSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether committed events go out to a JetStream stream, and how much it keeps: days (0: no limit) and GiB."""

    enabled: bool = True
    days: Annotated[int, Meta(ge=0, le=36500)] = 30
    gib: Annotated[float, Meta(ge=0.01)] = 1.0


class ArchivesSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The directory of the log's archives, which every server must be able to read; without one, `archives` below the
    data directory."""

    dir: str | None = None


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration file."""

    server: ServerSection
    database: DatabaseSection
    nats: NatsSection
    images: ImagesSection = ImagesSection()
    certificates: CertificatesSection = CertificatesSection()
    published: PublishedSection = PublishedSection()
    archives: ArchivesSection = ArchivesSection()

    @property
    def data_dir(self) -> Path:
        return Path(self.server.data_dir)

    @property
    def archives_dir(self) -> Path:
        return Path(self.archives.dir) if self.archives.dir is not None else self.data_dir / "archives"


class BadConfig(Exception):
    """The configuration file cannot be used; the message names the field."""

    code = "bad-config"


def load(path: Path) -> Config:
    """The settings in `path`. Raises BadConfig."""
    try:
        config = msgspec.convert(tomllib.loads(path.read_text()), Config)
        for network in config.images.allowed_networks:
            ip_network(network)
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise BadConfig(f"{path}: {error}") from error
    if config.server.listen_unix is None and config.server.listen_tcp is None:
        raise BadConfig(f"{path}: [server] needs listen_unix or listen_tcp")
    return config
