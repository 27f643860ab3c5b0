"""Read models: one JSON document a row, with the columns that lists are filtered and sorted by.

Everything here can be dropped and is refilled from the log.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE views.vms (
          id text PRIMARY KEY, name text NOT NULL, host text, state text NOT NULL, labels jsonb NOT NULL,
          doc text NOT NULL
        );
        CREATE INDEX ON views.vms (name);
        CREATE TABLE views.hosts (
          id text PRIMARY KEY, name text NOT NULL, state text NOT NULL, labels jsonb NOT NULL, doc text NOT NULL
        );
        CREATE INDEX ON views.hosts (name);
        CREATE TABLE views.images (id text PRIMARY KEY, name text NOT NULL, doc text NOT NULL);
        CREATE TABLE views.tokens (id text PRIMARY KEY, name text NOT NULL, state text NOT NULL, doc text NOT NULL);
        CREATE TABLE views.operations (
          id text PRIMARY KEY, vm text NOT NULL, vm_name text NOT NULL, verb text NOT NULL, state text NOT NULL,
          actor text NOT NULL, active boolean NOT NULL, doc text NOT NULL
        );
        CREATE INDEX ON views.operations (vm);
        CREATE INDEX ON views.operations (id) WHERE active;
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE views.vms, views.hosts, views.images, views.tokens, views.operations")
