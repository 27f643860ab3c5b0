"""A read model of drains. Hosts are shown as draining from here on, so everything is computed from the log anew."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE views.drains (
          id text PRIMARY KEY, state text NOT NULL, actor text NOT NULL, started boolean NOT NULL,
          active boolean NOT NULL, doc text NOT NULL
        );
        CREATE INDEX ON views.drains (id) WHERE active;
        DELETE FROM vmorch.checkpoints WHERE projection = 'read-models';
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE views.drains")
