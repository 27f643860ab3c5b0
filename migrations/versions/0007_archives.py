"""Archives: partitions whose events lie in files from now on, and the size that partitions are made with."""

from importlib.resources import files

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script = (files("migrations") / "versions" / "0007_archives.sql").read_text()
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(script)


def downgrade() -> None:
    raise NotImplementedError("archived events are in no table that an older schema knows")
