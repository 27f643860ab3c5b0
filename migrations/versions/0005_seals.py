"""Seals of the log: what its Merkle tree was at which size, and whose key says so. Only one function writes them."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SEALS = """
-- Each row seals the events after `after` up to `size`: their leaf hashes, the edge of the tree from then on
-- (the hashes of its perfect subtrees, the largest first), and the signed checkpoint.
CREATE TABLE vmorch.seals (
    size      bigint      PRIMARY KEY,
    after     bigint      NOT NULL UNIQUE CHECK (after >= 0 AND after < size),
    leaves    bytea       NOT NULL CHECK (octet_length(leaves) = (size - after) * 32),
    edge      bytea       NOT NULL,
    note      text        NOT NULL,
    sealed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE vmorch.seals ALTER leaves SET STORAGE EXTERNAL;   -- hashes do not compress

-- Nodes of the tree whose level is a multiple of 8, so that no proof reads more than 255 hashes for each of its own.
CREATE TABLE vmorch.seal_nodes (
    level int    NOT NULL,
    index bigint NOT NULL,
    hash  bytea  NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (level, index)
);

-- Seal what follows the last seal; false, and nothing written, if another server was first.
CREATE FUNCTION vmorch.seal(
    after bigint, size bigint, leaves bytea, edge bytea, note text, levels int[], indexes bigint[], hashes bytea[])
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    IF after <> (SELECT coalesce(max(s.size), 0) FROM vmorch.seals AS s) THEN
        RETURN false;
    END IF;
    IF size > (SELECT h.position FROM vmorch.log_head AS h) THEN
        RAISE EXCEPTION 'the log has no % events', size USING ERRCODE = 'data_exception';
    END IF;
    INSERT INTO vmorch.seals AS s (size, after, leaves, edge, note) VALUES (size, after, leaves, edge, note)
        ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- a seal that a crash takes is made again from events that are safe: no append shall wait for it to be flushed
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO vmorch.seal_nodes SELECT * FROM unnest(levels, indexes, hashes);
    RETURN true;
END $$;

REVOKE ALL ON FUNCTION vmorch.seal FROM PUBLIC;
GRANT SELECT ON vmorch.seals, vmorch.seal_nodes TO vmorch_app, vmorch_auditor;
GRANT EXECUTE ON FUNCTION vmorch.seal TO vmorch_app;
"""


def upgrade() -> None:
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(SEALS)


def downgrade() -> None:
    raise NotImplementedError("seals are a part of the log, which is never unmade")
