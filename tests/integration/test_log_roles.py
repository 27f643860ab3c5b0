"""Who may do what: nobody who can log in changes what the log holds."""

import psycopg
import pytest
from databases import Database
from logbook import an_append, on

from vmorch.core.ids import Position
from vmorch.log import schema
from vmorch.log.store import EventLog

pytestmark = pytest.mark.postgres

TAMPERING = [
    "UPDATE vmorch.seals SET note = ''",
    "DELETE FROM vmorch.seals",
    "TRUNCATE vmorch.seals",
    "INSERT INTO vmorch.seals (size, after, leaves, edge, note) VALUES (1, 0, decode(repeat('00', 32), 'hex'), '', '')",
    "UPDATE vmorch.seal_nodes SET level = 9",
    "DELETE FROM vmorch.seal_nodes",
    "INSERT INTO vmorch.seal_nodes VALUES (8, 0, decode(repeat('00', 32), 'hex'))",
    "DROP FUNCTION vmorch.seal",
    "UPDATE vmorch.partitioning SET changes = 0",
    "DELETE FROM vmorch.partitions",
    "INSERT INTO vmorch.archives VALUES (0, 1, 9, 'f', 1, decode(repeat('00', 32), 'hex'), now(), now())",
    "UPDATE vmorch.archives SET file = 'mine'",
    "DELETE FROM vmorch.archives",
    "UPDATE vmorch.archive_blocks SET sha256 = ''",
    "DELETE FROM vmorch.archive_blocks",
    "DELETE FROM vmorch.archive_streams",
    "SELECT vmorch.partition_by(1)",
    "SELECT vmorch.await_readers(1)",
    "SELECT vmorch.archive(0, 'f', 1, decode(repeat('00', 32), 'hex'), '{}', '{}', '{}', '{}')",
    "SELECT vmorch.begin_restore(0)",
    "SELECT vmorch.restore(0)",
    "UPDATE vmorch.subject_keys SET wrapped_key = NULL, erased_at = now()",
    "DELETE FROM vmorch.subject_keys",
    "TRUNCATE vmorch.subject_keys",
    "INSERT INTO vmorch.subject_keys (subject, master, erased_at) VALUES ('vm/1', 'm', now())",
    "ALTER TABLE vmorch.subject_keys DROP CONSTRAINT subject_keys_pkey",
    "DROP FUNCTION vmorch.erase_subject",
    "UPDATE vmorch.events SET data = '{}'",
    "UPDATE vmorch.events_0 SET data = '{}'",
    "UPDATE vmorch.events SET recorded_at = now() WHERE position = 1",
    "DELETE FROM vmorch.events",
    "DELETE FROM vmorch.events_0 WHERE position = 1",
    "TRUNCATE vmorch.events",
    "TRUNCATE vmorch.events_0",
    "INSERT INTO vmorch.events SELECT 2, stream, 2, kind, schema, data, meta, recorded_at FROM vmorch.events",
    "INSERT INTO vmorch.events_0 SELECT 2, stream, 2, kind, schema, data, meta, recorded_at FROM vmorch.events_0",
    "DROP TABLE vmorch.events",
    "DROP TABLE vmorch.events_0",
    "ALTER TABLE vmorch.events DETACH PARTITION vmorch.events_0",
    "ALTER TABLE vmorch.events ADD COLUMN note text",
    "ALTER TABLE vmorch.events DISABLE TRIGGER ALL",
    "ALTER TABLE vmorch.events OWNER TO CURRENT_USER",
    "CREATE TRIGGER t BEFORE INSERT ON vmorch.events EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE RULE r AS ON INSERT TO vmorch.events DO INSTEAD NOTHING",
    "UPDATE vmorch.log_head SET position = 0",
    "SELECT * FROM vmorch.log_head FOR UPDATE",
    "INSERT INTO vmorch.log_head VALUES (0, now(), 'mine')",
    "DELETE FROM vmorch.log_head",
    "TRUNCATE vmorch.log_head",
    "UPDATE vmorch.streams SET version = 0",
    "DELETE FROM vmorch.streams",
    "INSERT INTO vmorch.streams VALUES ('vm/9', 1, 1)",
    "TRUNCATE vmorch.streams",
    "UPDATE vmorch.requests SET first_position = 9",
    "DELETE FROM vmorch.requests",
    "INSERT INTO vmorch.requests VALUES ('r', 1, 1, now())",
    "DELETE FROM vmorch.claims",
    "INSERT INTO vmorch.claims VALUES ('vm', 'web', 'vm/9')",
    "UPDATE vmorch.claims SET stream = 'vm/9'",
    "MERGE INTO vmorch.events e USING (SELECT 1) s ON e.position = 1 WHEN MATCHED THEN DELETE",
    "COPY vmorch.events FROM STDIN",
    "LOCK TABLE vmorch.events IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE vmorch.log_head IN EXCLUSIVE MODE",
    "CREATE INDEX ON vmorch.events_0 (kind)",
    "CREATE TABLE vmorch.mine ()",
    "CREATE FUNCTION vmorch.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP FUNCTION vmorch.append",
    "ALTER FUNCTION vmorch.ensure_partitions SECURITY INVOKER",
    "DROP SCHEMA vmorch CASCADE",
    "SET ROLE vmorch_owner",
    "SET SESSION AUTHORIZATION vmorch_owner",
    "GRANT vmorch_owner TO CURRENT_USER",
    "ALTER ROLE vmorch_owner LOGIN",
    "SET session_replication_role = replica",
    "CREATE ROLE another SUPERUSER",
    "DELETE FROM vmorch.alembic_version",
]
AUDITORS_TAMPERING = [
    *TAMPERING,
    "SELECT vmorch.ensure_partitions()",
    "SELECT * FROM vmorch.subject_keys",
    "INSERT INTO vmorch.subject_keys (subject, master) VALUES ('vm/1', 'm')",
    "SELECT vmorch.erase_subject('vm/1')",
    "INSERT INTO vmorch.checkpoints VALUES ('vms', 1)",
    "CREATE TABLE views.mine ()",
    "SELECT * FROM vmorch.append('{1}', 'vm/2', '{0}', '{1}', 'k', '{1}', '1', '1', '', '{}', '{}', '', '', '')",
    "SET ROLE vmorch_app",
]


@pytest.fixture
async def one_event(event_log: EventLog) -> None:
    await event_log.append(an_append(on("vm/1", 0)))


def refused(url: str, statement: str) -> bool:
    with psycopg.connect(url) as connection:
        # a session may undo what its login set, so the refusal must not rest on that
        connection.execute("SET default_transaction_read_only = off")
        connection.commit()
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            connection.rollback()
            return True
        connection.rollback()
        return False


@pytest.mark.anyio
@pytest.mark.usefixtures("one_event")
async def test_the_server_cannot_tamper_with_the_log(database: Database) -> None:
    assert [statement for statement in TAMPERING if not refused(database.app_url, statement)] == []


@pytest.mark.anyio
@pytest.mark.usefixtures("one_event")
async def test_the_auditor_cannot_write_at_all(database: Database) -> None:
    assert [statement for statement in AUDITORS_TAMPERING if not refused(database.auditor_url, statement)] == []


def test_the_server_cannot_grant_what_it_lacks(database: Database) -> None:
    with psycopg.connect(database.app_url, autocommit=True) as connection:
        connection.execute("GRANT UPDATE ON vmorch.events TO PUBLIC")  # Postgres only warns
        held = connection.execute("SELECT has_table_privilege('vmorch_reader', 'vmorch.events', 'UPDATE')").fetchone()
    assert held == (False,)


@pytest.mark.anyio
async def test_the_auditor_reads_the_whole_log(database: Database, event_log: EventLog) -> None:
    answer = await event_log.append(an_append(on("vm/1", 0)))
    with psycopg.connect(database.auditor_url) as connection:
        for table in (
            "events", "events_0", "streams", "requests", "claims", "checkpoints", "log_head", "seals", "seal_nodes",
            "partitioning", "partitions", "archives", "archive_blocks", "archive_streams",
        ):  # fmt: skip
            connection.execute(f"SELECT * FROM vmorch.{table}")
        assert connection.execute("SELECT vmorch.position_at(%s)", (answer.recorded_at,)).fetchone() == (1,)


def test_the_server_owns_its_read_models_and_the_auditor_reads_them(database: Database) -> None:
    with psycopg.connect(database.app_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE views.probe (id text PRIMARY KEY)")
        connection.execute("INSERT INTO views.probe VALUES ('web')")
        connection.execute("INSERT INTO vmorch.checkpoints (projection, position) VALUES ('vms', 1)")
        connection.execute("UPDATE vmorch.checkpoints SET position = 2")
        with psycopg.connect(database.auditor_url) as auditor:
            assert auditor.execute("SELECT id FROM views.probe").fetchall() == [("web",)]
        connection.execute("TRUNCATE views.probe")
        connection.execute("DROP TABLE views.probe")


def test_the_owner_cannot_log_in(database: Database) -> None:
    for role in ("vmorch_owner", "vmorch_app", "vmorch_auditor"):
        with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
            psycopg.connect(database.owner_url, user=role)


def test_upgrading_again_changes_nothing(database: Database) -> None:
    with psycopg.connect(database.owner_url) as connection:
        before = connection.execute("SELECT incarnation FROM vmorch.log_head").fetchall()
    schema.upgrade(database.owner_url)
    schema.create_logins(database.owner_url)
    with psycopg.connect(database.owner_url) as connection:
        assert connection.execute("SELECT incarnation FROM vmorch.log_head").fetchall() == before


@pytest.mark.anyio
async def test_a_creator_of_roles_who_owns_the_database_may_upgrade_it(database: Database) -> None:
    """Managed Postgres gives nobody a superuser."""
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute("DROP SCHEMA vmorch, views CASCADE")
        connection.execute(f"CREATE ROLE {name} LOGIN CREATEROLE")
        connection.execute(f"ALTER DATABASE {name} OWNER TO {name}")
        connection.execute(f"GRANT vmorch_owner, vmorch_app TO {name} WITH ADMIN OPTION")
    try:
        schema.upgrade(database.owner_url.replace("postgres@", f"{name}@"))
        log = await EventLog.open(database.app_url)
        await log.append(an_append(on("vm/1", 0)))
        assert len(await log.read(Position(0))) == 1
        await log.close()
    finally:
        with psycopg.connect(database.owner_url, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} OWNER TO postgres")
            connection.execute(f"REASSIGN OWNED BY {name} TO postgres")
            connection.execute(f"DROP OWNED BY {name}")
            connection.execute(f"DROP ROLE {name}")
