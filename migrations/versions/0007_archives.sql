-- One row. `changes` counts archives made and brought back: whoever reads events and archives in two statements knows
-- by it whether both are of one moment, and 0 says that there never was one.
CREATE TABLE vmorch.partitioning (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    rows_each bigint  NOT NULL CHECK (rows_each >= 1),
    changes   bigint  NOT NULL DEFAULT 0
);
INSERT INTO vmorch.partitioning (rows_each) VALUES (10000000);

-- Every partition that there ever was: the positions from `low` up to, and without, `high` are in vmorch.events_NUMBER,
-- unless they are archived.
CREATE TABLE vmorch.partitions (
    number int    PRIMARY KEY,
    low    bigint NOT NULL UNIQUE CHECK (low >= 0),
    high   bigint NOT NULL UNIQUE CHECK (high > low)
);
INSERT INTO vmorch.partitions
SELECT p.number, p.number * 10000000, (p.number + 1) * 10000000
  FROM (SELECT substring(c.relname from '[0-9]+$')::bigint AS number
          FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'vmorch.events'::regclass) AS p;

-- The events from `first` to `last` lie in this file. `sha256` is that of all its bytes.
CREATE TABLE vmorch.archives (
    number      int         PRIMARY KEY REFERENCES vmorch.partitions,
    first       bigint      NOT NULL UNIQUE,
    last        bigint      NOT NULL UNIQUE CHECK (last >= first),
    file        text        NOT NULL UNIQUE CHECK (file <> '' AND file !~ '[/[:cntrl:]]'),
    bytes       bigint      NOT NULL CHECK (bytes > 0),
    sha256      bytea       NOT NULL CHECK (octet_length(sha256) = 32),
    began_at    timestamptz NOT NULL,       -- when its first event was recorded, and its last
    ended_at    timestamptz NOT NULL CHECK (ended_at >= began_at),
    archived_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- A part of a file that is read by itself: `size` bytes at `place` hold the events from `first` to `last`.
CREATE TABLE vmorch.archive_blocks (
    last     bigint      PRIMARY KEY CHECK (last >= first AND last < first + 1000),
    first    bigint      NOT NULL,
    archive  int         NOT NULL REFERENCES vmorch.archives ON DELETE CASCADE,
    place    bigint      NOT NULL CHECK (place >= 0),
    size     int         NOT NULL CHECK (size > 0),
    sha256   bytea       NOT NULL CHECK (octet_length(sha256) = 32),
    began_at timestamptz NOT NULL
);

-- Which blocks hold events of a stream, by the blocks' last positions, and its last version in each of them.
CREATE TABLE vmorch.archive_streams (
    stream   text COLLATE "C" NOT NULL,
    archive  int              NOT NULL REFERENCES vmorch.archives ON DELETE CASCADE,
    blocks   bigint[]         NOT NULL,
    versions bigint[]         NOT NULL CHECK (cardinality(versions) = cardinality(blocks)),
    PRIMARY KEY (stream, archive)
);


-- Keep at least two partitions ahead of the one in use; answer how many were made.
-- Attaching takes a weaker lock than creating in place, so readers and appends go on meanwhile.
CREATE OR REPLACE FUNCTION vmorch.ensure_partitions() RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rows_each bigint;
    following bigint;
    number    int;
    low       bigint;
    partition text;
    made      int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('vmorch.ensure_partitions'));
    SELECT s.rows_each INTO STRICT rows_each FROM vmorch.partitioning AS s;
    SELECT h.position + 1 INTO STRICT following FROM vmorch.log_head AS h;
    WHILE (SELECT count(*) FROM vmorch.partitions AS p WHERE p.high > following) < 3 LOOP
        SELECT coalesce(max(p.number) + 1, 0), coalesce(max(p.high), 0) INTO number, low FROM vmorch.partitions AS p;
        partition := format('events_%s', number);
        EXECUTE format('CREATE TABLE vmorch.%I (LIKE vmorch.events INCLUDING ALL)', partition);
        EXECUTE format('CREATE UNIQUE INDEX ON vmorch.%I (stream, version)', partition);
        EXECUTE format('ALTER TABLE vmorch.events ATTACH PARTITION vmorch.%I FOR VALUES FROM (%s) TO (%s)',
                       partition, low, low + rows_each);
        EXECUTE format('GRANT SELECT ON vmorch.%I TO vmorch_app, vmorch_auditor', partition);
        INSERT INTO vmorch.partitions VALUES (number, low, low + rows_each);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;


-- Hold the events until the transaction ends, so that nobody reads with the partitions of before and the rows of after,
-- or the other way round. To be called last, because everybody waits from then on. Whoever reads for long is given so
-- many chances to end, with pauses for the appends that wait behind this.
CREATE FUNCTION vmorch.await_readers(chances int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
BEGIN
    FOR chance IN 1 .. chances LOOP
        BEGIN
            LOCK TABLE vmorch.events IN ACCESS EXCLUSIVE MODE;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF chance < chances THEN
                PERFORM pg_sleep(1);
            END IF;
        END;
    END LOOP;
    RAISE EXCEPTION 'somebody reads the log for long' USING ERRCODE = 'lock_not_available';
END $$;


-- Make partitions of so many positions from now on, in place of those that were made ahead and hold nothing yet.
CREATE FUNCTION vmorch.partition_by(size bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    head bigint;
    gone int;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('vmorch.ensure_partitions'));
    UPDATE vmorch.partitioning SET rows_each = size WHERE rows_each <> size;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- nothing may be appended to what goes; an append takes the same locks in the same order
    SELECT h.position INTO STRICT head FROM vmorch.log_head AS h FOR UPDATE;
    PERFORM vmorch.await_readers(1);
    FOR gone IN SELECT p.number FROM vmorch.partitions AS p WHERE greatest(p.low, 1) > head LOOP
        EXECUTE format('DROP TABLE vmorch.%I', format('events_%s', gone));
        DELETE FROM vmorch.partitions AS p WHERE p.number = gone;
    END LOOP;
    PERFORM vmorch.ensure_partitions();
END $$;


-- Take a partition out of the log whose events are in a file. All of it happens or nothing; it is refused with
-- VM002 unless a later partition is in use, VM003 unless all is sealed, VM004 unless every position is recorded.
-- `blocks` are those of the file in order, each of so many positions as the first.
CREATE FUNCTION vmorch.archive(
    number int, file text, bytes bigint, sha256 bytea, lasts bigint[], places bigint[], sizes int[], hashes bytea[])
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    first     bigint;
    last      bigint;
    span      bigint;
    there     bigint;
    partition text := format('events_%s', number);
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('vmorch.archives'));
    SELECT greatest(p.low, 1), p.high - 1 INTO STRICT first, last FROM vmorch.partitions AS p WHERE p.number = archive.number;
    IF last >= (SELECT h.position FROM vmorch.log_head AS h) THEN
        RAISE EXCEPTION 'partition % is in use', number USING ERRCODE = 'VM002';
    END IF;
    IF last > (SELECT coalesce(max(s.size), 0) FROM vmorch.seals AS s) THEN
        RAISE EXCEPTION 'partition % is not sealed', number USING ERRCODE = 'VM003';
    END IF;
    EXECUTE format('SELECT count(DISTINCT e.position) FROM vmorch.%I AS e WHERE e.position BETWEEN $1 AND $2', partition)
        INTO there USING first, last;
    IF there <> last - first + 1 THEN
        RAISE EXCEPTION 'partition % holds % events from % to %', number, there, first, last USING ERRCODE = 'VM004';
    END IF;
    span := lasts[1] - first + 1;
    IF cardinality(lasts) <> cardinality(places) OR cardinality(lasts) <> cardinality(sizes)
       OR cardinality(lasts) <> cardinality(hashes) OR coalesce(span, 0) < 1
       OR lasts <> ARRAY(SELECT least(first - 1 + g * span, last)
                           FROM generate_series(1, (last - first + span) / span) AS g ORDER BY g) THEN
        RAISE EXCEPTION 'the blocks are not those of partition %', number USING ERRCODE = 'data_exception';
    END IF;

    EXECUTE format('INSERT INTO vmorch.archives (number, first, last, file, bytes, sha256, began_at, ended_at)'
                   ' SELECT $1, $2, $3, $4, $5, $6, min(e.recorded_at), max(e.recorded_at) FROM vmorch.%I AS e'
                   ' WHERE e.position IN ($2, $3)', partition)
        USING number, first, last, file, bytes, sha256;
    EXECUTE format('INSERT INTO vmorch.archive_blocks'
                   ' SELECT b.last, $2 + (b.index - 1) * $3, $1, b.place, b.size, b.hash, e.recorded_at'
                   '   FROM unnest($4, $5, $6, $7) WITH ORDINALITY AS b(last, place, size, hash, index)'
                   '   JOIN vmorch.%I AS e ON e.position = $2 + (b.index - 1) * $3', partition)
        USING number, first, span, lasts, places, sizes, hashes;
    EXECUTE format('INSERT INTO vmorch.archive_streams'
                   ' SELECT g.stream, $1, array_agg(g.block ORDER BY g.block), array_agg(g.version ORDER BY g.block)'
                   '   FROM (SELECT e.stream, least($2 - 1 + ((e.position - $2) / $3 + 1) * $3, $4) AS block,'
                   '                max(e.version) AS version FROM vmorch.%I AS e GROUP BY 1, 2) AS g'
                   '  GROUP BY g.stream', partition)
        USING number, first, span, last;
    UPDATE vmorch.partitioning AS s SET changes = s.changes + 1;

    PERFORM vmorch.await_readers(5);
    EXECUTE format('ALTER TABLE vmorch.events DETACH PARTITION vmorch.%I', partition);
    EXECUTE format('DROP TABLE vmorch.%I', partition);
END $$;


-- An empty table for the events of an archive that is brought back. Nobody reads it until `restore` has attached it.
CREATE FUNCTION vmorch.begin_restore(number int) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('vmorch.archives'));
    PERFORM 1 FROM vmorch.archives AS a WHERE a.number = begin_restore.number;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'partition % is not archived', number USING ERRCODE = 'data_exception';
    END IF;
    EXECUTE format('CREATE TABLE vmorch.%I (LIKE vmorch.events INCLUDING ALL)', format('events_%s', number));
END $$;


-- Put a partition back whose events were copied into its table, and forget its archive. The file stays.
-- It is refused with VM004 unless each event hashes to the leaf that was sealed.
CREATE FUNCTION vmorch.restore(number int) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    bounds    vmorch.partitions;
    there     bigint;
    partition text := format('events_%s', number);
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('vmorch.archives'));
    DELETE FROM vmorch.archives AS a WHERE a.number = restore.number;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'partition % is not archived', number USING ERRCODE = 'data_exception';
    END IF;
    SELECT * INTO STRICT bounds FROM vmorch.partitions AS p WHERE p.number = restore.number;
    EXECUTE format($query$
        SELECT count(*) FROM vmorch.%I AS e
          JOIN vmorch.seals AS s ON e.position > s.after AND e.position <= s.size
         WHERE substring(s.leaves FROM ((e.position - s.after - 1) * 32 + 1)::int FOR 32) =
               sha256('\x00'::bytea || 'vmorch.event.1'::bytea || int8send(e.position) || int8send(e.version)
                      || int4send(e.schema) || int8send((extract(epoch FROM e.recorded_at) * 1000000)::bigint)
                      || int4send(octet_length(convert_to(e.stream, 'UTF8'))) || convert_to(e.stream, 'UTF8')
                      || int4send(octet_length(convert_to(e.kind, 'UTF8'))) || convert_to(e.kind, 'UTF8')
                      || int4send(octet_length(convert_to(e.meta::text, 'UTF8'))) || convert_to(e.meta::text, 'UTF8')
                      || sha256(convert_to(e.data::text, 'UTF8')))
        $query$, partition) INTO there;
    IF there <> bounds.high - greatest(bounds.low, 1) THEN
        RAISE EXCEPTION 'only % events of partition % are what was sealed', there, number USING ERRCODE = 'VM004';
    END IF;
    UPDATE vmorch.partitioning AS s SET changes = s.changes + 1;
    EXECUTE format('CREATE UNIQUE INDEX ON vmorch.%I (stream, version)', partition);
    EXECUTE format('GRANT SELECT ON vmorch.%I TO vmorch_app, vmorch_auditor', partition);
    -- attaching would not wait for readers by itself
    PERFORM vmorch.await_readers(5);
    EXECUTE format('ALTER TABLE vmorch.events ATTACH PARTITION vmorch.%I FOR VALUES FROM (%s) TO (%s)',
                   partition, bounds.low, bounds.high);
END $$;


-- The last position recorded at or before a moment, 0 if none was. Times never decrease along positions,
-- so halving the range needs no index on time. If the moment lies within an archive, `archived` is its number and
-- `position` the last one before it: the file alone knows more.
-- Not STABLE: that would see the rows of before a partition went, and the partitions of after.
CREATE FUNCTION vmorch.position_around(moment timestamptz, OUT "position" bigint, OUT archived int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    low    bigint;      -- known to be at or before the moment
    high   bigint;      -- known to be after it
    middle bigint;
    noted  timestamptz;
    held   vmorch.archives;
    again  boolean := false;
BEGIN
    SELECT coalesce(least(min(e.position), (SELECT min(a.first) FROM vmorch.archives AS a)), 1) - 1 INTO low
      FROM vmorch.events AS e;
    SELECT h.position + 1 INTO STRICT high FROM vmorch.log_head AS h;
    WHILE high - low > 1 LOOP
        middle := (low + high) / 2;
        SELECT e.recorded_at INTO noted FROM vmorch.events AS e WHERE e.position = middle;
        IF FOUND THEN
            IF noted <= moment THEN low := middle; ELSE high := middle; END IF;
        ELSE
            SELECT * INTO held FROM vmorch.archives AS a WHERE middle BETWEEN a.first AND a.last;
            IF NOT FOUND THEN
                IF again THEN
                    RAISE EXCEPTION 'event % is not in the log', middle USING ERRCODE = 'no_data_found';
                END IF;
                again := true;      -- it may have come back between the two questions
            ELSIF held.ended_at <= moment THEN
                low := held.last;
            ELSIF held.began_at > moment THEN
                high := held.first;
            ELSE
                low := held.first - 1;
                archived := held.number;
                EXIT;
            END IF;
        END IF;
    END LOOP;
    position_around.position := low;
END $$;

-- The same for whoever has no files: refused if the moment lies within an archive.
CREATE OR REPLACE FUNCTION vmorch.position_at(moment timestamptz) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
BEGIN
    SELECT r.position, r.archived INTO STRICT found FROM vmorch.position_around(moment) AS r;
    IF found.archived IS NOT NULL THEN
        RAISE EXCEPTION 'the events of that time are archived' USING ERRCODE = 'no_data_found';
    END IF;
    RETURN found.position;
END $$;


REVOKE ALL ON FUNCTION vmorch.partition_by, vmorch.await_readers, vmorch.archive, vmorch.begin_restore, vmorch.restore,
    vmorch.position_around FROM PUBLIC;
GRANT SELECT ON vmorch.partitioning, vmorch.partitions, vmorch.archives, vmorch.archive_blocks, vmorch.archive_streams
    TO vmorch_app, vmorch_auditor;
GRANT EXECUTE ON FUNCTION vmorch.position_around TO vmorch_app, vmorch_auditor;
