"""Keys of subjects, kept beside the log and not in it: what is sealed for a subject can be read as long as its key is
here, and never again afterwards."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEYS = """
-- A key is wrapped by the server's master key, which is not in the database. The row of a key that was erased stays, so
-- that the subject never gets another one.
CREATE TABLE vmorch.subject_keys (
    subject     text        COLLATE "C" PRIMARY KEY,
    wrapped_key bytea       CHECK (octet_length(wrapped_key) = 60),
    master      text        NOT NULL,                       -- names the master key
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    erased_at   timestamptz,
    CHECK ((wrapped_key IS NULL) = (erased_at IS NOT NULL))
);

-- Destroy a subject's key; false if there is none to destroy.
CREATE FUNCTION vmorch.erase_subject(subject text)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    UPDATE vmorch.subject_keys AS k SET wrapped_key = NULL, erased_at = clock_timestamp()
        WHERE k.subject = subject AND k.wrapped_key IS NOT NULL;
    RETURN FOUND;
END $$;

REVOKE ALL ON FUNCTION vmorch.erase_subject FROM PUBLIC;
-- auditors read the log, and nothing that opens what is sealed in it
GRANT SELECT, INSERT (subject, wrapped_key, master) ON vmorch.subject_keys TO vmorch_app;
GRANT EXECUTE ON FUNCTION vmorch.erase_subject TO vmorch_app;
"""


def upgrade() -> None:
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(KEYS)


def downgrade() -> None:
    raise NotImplementedError("without its keys a part of the log could not be read any more")
