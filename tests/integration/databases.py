"""Fresh databases with the current schema, copied from a template because that takes a tenth of a migration."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
from msgspec import Struct

from vmorch.embedded import EmbeddedPostgres
from vmorch.log import schema

TEMPLATE = "vmorch_template"


class Database(Struct, frozen=True):
    """One database with the current schema: as the superuser, as the server, as the auditor."""

    owner_url: str
    app_url: str
    auditor_url: str


def make_template(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    schema.upgrade(server.url(TEMPLATE))
    schema.create_logins(server.url(TEMPLATE))


def fresh_database(server: EmbeddedPostgres) -> Iterator[Database]:
    name = f"log_{uuid4().hex}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        # a copy is another log than its template
        connection.execute("UPDATE vmorch.log_head SET incarnation = gen_random_uuid()::text")
    yield Database(
        owner_url=server.url(name),
        app_url=server.url(name, schema.APP_LOGIN),
        auditor_url=server.url(name, schema.AUDITOR_LOGIN),
    )
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
