"""The event log: tables that only one function writes.

Runs as vmorch_owner, in the schema vmorch that the roles' set-up made.
"""

from importlib.resources import files

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    script = (files("migrations") / "versions" / "0001_event_log.sql").read_text()
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(script)


def downgrade() -> None:
    raise NotImplementedError("the first schema has nothing below it: an event log is never unmade")
