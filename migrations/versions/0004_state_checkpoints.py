"""Checkpoints of the folded state, so that the past is found without folding the log from its beginning.

Everything here can be emptied at any time and is written anew.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE vmorch.state_checkpoints (
          position bigint NOT NULL, fingerprint text NOT NULL, frame bytea NOT NULL, things int NOT NULL,
          written_at timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (fingerprint, position)
        );
        CREATE TABLE vmorch.checkpointed_states (
          fingerprint text NOT NULL, position bigint NOT NULL, place int NOT NULL,
          stream text COLLATE "C" NOT NULL, name text COLLATE "C" NOT NULL, state bytea NOT NULL,
          over bytea NOT NULL,
          PRIMARY KEY (position, fingerprint, stream),
          FOREIGN KEY (fingerprint, position) REFERENCES vmorch.state_checkpoints ON DELETE CASCADE
        );
        -- it is compressed already, and compressing it again takes longer than all the rest
        ALTER TABLE vmorch.checkpointed_states ALTER COLUMN state SET STORAGE EXTERNAL,
          ALTER COLUMN over SET STORAGE EXTERNAL;
        CREATE INDEX ON vmorch.checkpointed_states (position, fingerprint, name) WHERE name <> '';
        GRANT SELECT ON vmorch.state_checkpoints, vmorch.checkpointed_states TO vmorch_app, vmorch_auditor;
        GRANT INSERT, DELETE ON vmorch.state_checkpoints, vmorch.checkpointed_states TO vmorch_app;
        """
    )
    # sorted by bytes, whatever the database's language: lists of the past are sorted in memory, and must not differ
    for table in ("vms", "hosts", "images", "tokens"):
        op.execute(f'ALTER TABLE views.{table} ALTER name TYPE text COLLATE "C", ALTER id TYPE text COLLATE "C"')
    for table in ("operations", "drains"):
        op.execute(f'ALTER TABLE views.{table} ALTER id TYPE text COLLATE "C"')


def downgrade() -> None:
    op.execute("DROP TABLE vmorch.checkpointed_states, vmorch.state_checkpoints")
