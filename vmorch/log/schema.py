"""The database's roles and schema, made and upgraded by the program itself.

Alembic's migrations are the schema's only author. Must not be needed by a running server.
"""

from importlib.resources import as_file, files

import psycopg
from alembic import command
from alembic.config import Config
from psycopg import sql
from sqlalchemy import create_engine

APP_LOGIN = "vmorch_server"
AUDITOR_LOGIN = "vmorch_reader"


def upgrade(owner_url: str) -> None:
    """Bring the database at `owner_url` to the newest schema; harmless to repeat.

    The URL's user must be a superuser, or have CREATEROLE and own the database. Everything is made as
    the role `vmorch_owner`, who cannot log in.
    """
    prepare_roles(owner_url)
    engine = create_engine(owner_url.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        with engine.connect() as connection, as_file(files("migrations")) as scripts:
            connection.exec_driver_sql("SET ROLE vmorch_owner")
            connection.commit()
            config = Config()
            config.set_main_option("script_location", str(scripts).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    finally:
        engine.dispose()


def prepare_roles(owner_url: str) -> None:
    """Make the group roles and the two schemas.

    `vmorch_owner` owns the log, `vmorch_app` appends to it and owns the read models in `views`,
    `vmorch_auditor` reads everything. None of them can log in.
    """
    with psycopg.connect(owner_url, autocommit=True) as connection:
        for role in ("vmorch_owner", "vmorch_app", "vmorch_auditor"):
            _create_role(connection, role, login=False)
        # a creator of roles that is no superuser must be a member to hand things over
        connection.execute("DO $$ BEGIN EXECUTE format('GRANT vmorch_owner, vmorch_app TO %I', current_user); END $$")
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('vmorch.schema'))")
            connection.execute("CREATE SCHEMA IF NOT EXISTS vmorch AUTHORIZATION vmorch_owner")
            connection.execute("CREATE SCHEMA IF NOT EXISTS views AUTHORIZATION vmorch_app")
            connection.execute("GRANT USAGE ON SCHEMA views TO vmorch_auditor")
            connection.execute("GRANT USAGE, CREATE ON SCHEMA views TO vmorch_owner")
            connection.execute(
                "ALTER DEFAULT PRIVILEGES FOR ROLE vmorch_app IN SCHEMA views GRANT SELECT ON TABLES TO vmorch_auditor"
            )
            connection.execute(
                "ALTER DEFAULT PRIVILEGES FOR ROLE vmorch_owner IN SCHEMA views"
                " GRANT SELECT ON TABLES TO vmorch_auditor"
            )
            connection.execute(
                "ALTER DEFAULT PRIVILEGES FOR ROLE vmorch_owner IN SCHEMA views GRANT ALL ON TABLES TO vmorch_app"
            )


def create_logins(owner_url: str) -> None:
    """Make the two users of an embedded server, without passwords: its socket's directory is the guard.

    `vmorch_server` works as `vmorch_app`, so that read models belong to the group and not to one login.
    """
    with psycopg.connect(owner_url, autocommit=True) as connection:
        for login, group in ((APP_LOGIN, "vmorch_app"), (AUDITOR_LOGIN, "vmorch_auditor")):
            _create_role(connection, login, login=True)
            names = {"login": sql.Identifier(login), "group": sql.Identifier(group)}
            connection.execute(sql.SQL("GRANT {group} TO {login}").format(**names))
            connection.execute(sql.SQL("ALTER ROLE {login} SET role = {group}").format(**names))
            connection.execute(
                sql.SQL("ALTER ROLE {login} SET idle_in_transaction_session_timeout = '60s'").format(**names)
            )
        reader = sql.Identifier(AUDITOR_LOGIN)
        for setting in ("default_transaction_read_only = on", "statement_timeout = '10min'", "lock_timeout = '5s'"):
            connection.execute(sql.SQL("ALTER ROLE {} SET ").format(reader) + sql.SQL(setting))


def partition_by(owner_url: str, size: int) -> None:
    """Have the log's later partitions hold `size` events each; those that hold any stay as they are."""
    with psycopg.connect(owner_url, autocommit=True) as connection:
        connection.execute("SET ROLE vmorch_owner")
        connection.execute("SELECT vmorch.partition_by(%s)", (size,))


def _create_role(connection: psycopg.Connection, role: str, *, login: bool) -> None:
    known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone()
    if known is None:
        kind = sql.SQL("LOGIN" if login else "NOLOGIN")
        try:
            connection.execute(sql.SQL("CREATE ROLE {} {}").format(sql.Identifier(role), kind))
        except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            return  # another database of the cluster was upgraded at the same moment
