-- One row. Its lock orders all appends: it is taken first and held to the commit, so that positions are
-- gapless (a rollback takes its increment with it) and appear in commit order.
-- A dump that runs for hours keeps every dead version of this row. The index leads to the newest one at once;
-- hence the odd condition of the updates, which also holds for the row found after waiting for its lock.
CREATE TABLE vmorch.log_head (
    position    bigint      PRIMARY KEY CHECK (position >= 0),
    recorded_at timestamptz NOT NULL,
    incarnation text        NOT NULL
);
INSERT INTO vmorch.log_head VALUES (0, '-infinity', gen_random_uuid()::text);

CREATE TABLE vmorch.streams (
    stream         text   PRIMARY KEY,
    version        bigint NOT NULL,
    first_position bigint NOT NULL       -- spares reads of one stream the partitions before it
) WITH (fillfactor = 70);

-- json and not jsonb: the bytes are kept as written, which is what the log's hash covers.
-- A unique (stream, version) cannot be had across partitions: streams.version is the authority, and each
-- partition checks its own part.
CREATE TABLE vmorch.events (
    position    bigint      PRIMARY KEY,
    stream      text        NOT NULL,
    version     bigint      NOT NULL,
    kind        text        NOT NULL,
    schema      int         NOT NULL,
    data        json        NOT NULL,
    meta        json        NOT NULL,
    recorded_at timestamptz NOT NULL
) PARTITION BY RANGE (position);

CREATE TABLE vmorch.requests (
    request_id     text        PRIMARY KEY,
    first_position bigint      NOT NULL,
    last_position  bigint      NOT NULL,
    recorded_at    timestamptz NOT NULL
);

CREATE TABLE vmorch.claims (
    scope  text NOT NULL,
    name   text NOT NULL,
    stream text NOT NULL,
    PRIMARY KEY (scope, name)
);

CREATE TABLE vmorch.checkpoints (
    projection text        PRIMARY KEY,
    position   bigint      NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);


-- Keep at least two partitions of 10 million positions ahead of the one in use; answer how many were made.
-- Attaching takes a weaker lock than creating in place, so readers and appends go on meanwhile.
CREATE FUNCTION vmorch.ensure_partitions() RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rows_each CONSTANT bigint := 10000000;
    current   bigint;
    bound     bigint;
    partition text;
    made      int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('vmorch.ensure_partitions'));
    SELECT (h.position + 1) / rows_each INTO STRICT current FROM vmorch.log_head AS h;
    FOR number IN current .. current + 2 LOOP
        partition := format('events_%s', number);
        CONTINUE WHEN to_regclass(format('vmorch.%I', partition)) IS NOT NULL;
        bound := number * rows_each;
        EXECUTE format('CREATE TABLE vmorch.%I (LIKE vmorch.events INCLUDING ALL)', partition);
        EXECUTE format('CREATE UNIQUE INDEX ON vmorch.%I (stream, version)', partition);
        EXECUTE format('ALTER TABLE vmorch.events ATTACH PARTITION vmorch.%I FOR VALUES FROM (%s) TO (%s)',
                       partition, bound, bound + rows_each);
        EXECUTE format('GRANT SELECT ON vmorch.%I TO vmorch_app, vmorch_auditor', partition);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;


-- Append many appends in order, each all or nothing, in the caller's transaction.
--
--   spans, requests             per append: how many streams it writes; its request id or an empty line
--   streams, expected, counts   per stream of each append: name, expected version, number of its events
--   kinds, schemas, datas, metas   per event, in the order of the streams
--   name_spans                  per append: how many names it touches (empty if none touches any)
--   claimed, scopes, names, holders   per name: claim or release; releases come first
--
-- Texts are joined by newlines. first_position is that of the batch's first stored event; the events of the
-- appends that succeed follow each other. problems lists the others: {"append": 1.., "code": ...} with
-- "version" (stream, expected, actual), "name" (scope, name, holder) or "repeated" (first, last, recorded_at).
CREATE FUNCTION vmorch.append(
    spans int[], streams text, expected bigint[], counts int[],
    kinds text, schemas int[], datas text, metas text,
    requests text, name_spans int[], claimed boolean[], scopes text, names text, holders text,
    OUT first_position bigint, OUT recorded_at timestamptz, OUT problems text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_variable
DECLARE
    total       bigint  := (SELECT sum(c) FROM unnest(counts) AS c);
    stream_of   text[]  := string_to_array(streams, E'\n');
    request_of  text[]  := string_to_array(requests, E'\n');
    scope_of    text[]  := string_to_array(scopes, E'\n');
    name_of     text[]  := string_to_array(names, E'\n');
    holder_of   text[]  := string_to_array(holders, E'\n');
    requested   boolean := requests <> '';
    naming      boolean := cardinality(name_spans) > 0;
    following   bigint;
    begins      bigint;                -- the append's first position
    place       bigint[] := array_fill(0::bigint, ARRAY[cardinality(counts)]);
    entry_of    int[];
    rank_of     int[];
    low         int;
    high        int := 0;
    name_low    int;
    name_high   int := 0;
    found_version bigint;
    found_holder  text;
    problem     json;
    failed       json[];
BEGIN
    IF total IS NULL OR total < 1
       OR cardinality(stream_of) <> cardinality(counts) OR cardinality(expected) <> cardinality(counts)
       OR cardinality(schemas) <> total
       OR (SELECT sum(c) FROM unnest(spans) AS c) <> cardinality(counts)
       OR (requested AND cardinality(request_of) <> cardinality(spans))
       OR (naming AND cardinality(name_spans) <> cardinality(spans)) THEN
        RAISE EXCEPTION 'the columns of the batch do not match' USING ERRCODE = 'data_exception';
    END IF;

    -- everybody waits here; clock_timestamp() is read once the row is ours
    UPDATE vmorch.log_head AS h
       SET position = h.position + total, recorded_at = greatest(h.recorded_at, clock_timestamp())
     WHERE h.position >= (SELECT max(l.position) FROM vmorch.log_head AS l)
     RETURNING h.position - total + 1, h.recorded_at INTO STRICT first_position, recorded_at;
    following := first_position;

    FOR number IN 1 .. cardinality(spans) LOOP
        low := high + 1;
        high := high + spans[number];
        begins := following;
        problem := NULL;

        IF requested AND request_of[number] <> '' THEN
            SELECT json_build_object('append', number, 'code', 'repeated', 'first', r.first_position,
                                     'last', r.last_position, 'recorded_at', r.recorded_at)
              INTO problem FROM vmorch.requests AS r WHERE r.request_id = request_of[number];
        END IF;

        IF naming THEN
            name_low := name_high + 1;
            name_high := name_high + name_spans[number];
        END IF;

        -- With one stream and no name the write itself is the check. Otherwise everything is checked first,
        -- because a savepoint for each append costs a transaction id.
        IF problem IS NULL AND (high > low OR name_high >= name_low) THEN
            FOR entry IN low .. high LOOP
                SELECT s.version INTO found_version FROM vmorch.streams AS s WHERE s.stream = stream_of[entry];
                IF coalesce(found_version, 0) <> expected[entry] THEN
                    problem := json_build_object('append', number, 'code', 'version', 'stream', stream_of[entry],
                                                 'expected', expected[entry], 'actual', coalesce(found_version, 0));
                    EXIT;
                END IF;
            END LOOP;
            IF problem IS NULL AND name_high >= name_low THEN
                BEGIN
                    FOR touched IN name_low .. name_high LOOP
                        IF NOT claimed[touched] THEN
                            DELETE FROM vmorch.claims AS c
                             WHERE c.scope = scope_of[touched] AND c.name = name_of[touched]
                               AND c.stream = holder_of[touched];
                        ELSE
                            INSERT INTO vmorch.claims AS c VALUES (scope_of[touched], name_of[touched], holder_of[touched])
                                ON CONFLICT ON CONSTRAINT claims_pkey DO NOTHING;
                            IF NOT FOUND THEN
                                SELECT c.stream INTO STRICT found_holder FROM vmorch.claims AS c
                                 WHERE c.scope = scope_of[touched] AND c.name = name_of[touched];
                                IF found_holder <> holder_of[touched] THEN
                                    problem := json_build_object('append', number, 'code', 'name',
                                        'scope', scope_of[touched], 'name', name_of[touched], 'holder', found_holder);
                                    RAISE EXCEPTION USING ERRCODE = 'VM001';   -- undoes this append's releases and claims
                                END IF;
                            END IF;
                        END IF;
                    END LOOP;
                EXCEPTION WHEN SQLSTATE 'VM001' THEN
                    NULL;
                END;
            END IF;
        END IF;

        IF problem IS NULL THEN
            FOR entry IN low .. high LOOP
                CONTINUE WHEN counts[entry] = 0;
                IF expected[entry] = 0 THEN
                    INSERT INTO vmorch.streams AS s VALUES (stream_of[entry], counts[entry], following)
                        ON CONFLICT ON CONSTRAINT streams_pkey DO NOTHING;
                ELSE
                    UPDATE vmorch.streams AS s SET version = expected[entry] + counts[entry]
                     WHERE s.stream = stream_of[entry] AND s.version = expected[entry];
                END IF;
                IF NOT FOUND THEN
                    IF high > low THEN
                        RAISE EXCEPTION 'stream % appears twice in one append', stream_of[entry]
                            USING ERRCODE = 'data_exception';
                    END IF;
                    SELECT s.version INTO found_version FROM vmorch.streams AS s WHERE s.stream = stream_of[entry];
                    problem := json_build_object('append', number, 'code', 'version', 'stream', stream_of[entry],
                                                 'expected', expected[entry], 'actual', coalesce(found_version, 0));
                    EXIT;
                END IF;
                place[entry] := following;
                following := following + counts[entry];
            END LOOP;
        END IF;

        IF problem IS NOT NULL THEN
            failed := failed || problem;
        ELSIF requested AND request_of[number] <> '' THEN
            INSERT INTO vmorch.requests VALUES (request_of[number], begins, following - 1, recorded_at);
        END IF;
    END LOOP;

    IF total = 1 AND cardinality(counts) = 1 THEN
        IF failed IS NULL THEN
            INSERT INTO vmorch.events VALUES (first_position, streams, expected[1] + 1, kinds, schemas[1],
                                              datas::json, metas::json, recorded_at);
        END IF;
    ELSE
        SELECT array_agg(c.entry), array_agg(r) INTO entry_of, rank_of
          FROM unnest(counts) WITH ORDINALITY AS c(size, entry), generate_series(1, c.size) AS r;
        INSERT INTO vmorch.events
        SELECT place[e.entry] + e.rank - 1, stream_of[e.entry], expected[e.entry] + e.rank, e.kind, e.schema,
               e.data::json, e.meta::json, recorded_at
          FROM unnest(entry_of, rank_of, string_to_array(kinds, E'\n'), schemas, string_to_array(datas, E'\n'),
                      string_to_array(metas, E'\n')) AS e(entry, rank, kind, schema, data, meta)
         WHERE place[e.entry] > 0;
    END IF;

    IF failed IS NOT NULL THEN
        UPDATE vmorch.log_head AS h SET position = following - 1 WHERE h.position = first_position + total - 1;
        problems := array_to_json(failed);
    END IF;
END $$;


-- The same for the commonest append, events for one stream and nothing else, when nobody else appends
-- at the moment: three statements, where the general case takes a dozen. A stream at another version is answered with that version, unwritten.
CREATE FUNCTION vmorch.append_alone(
    stream text, expected bigint, size int, kinds text, schemas int[], datas text, metas text,
    OUT first_position bigint, OUT recorded_at timestamptz, OUT actual bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_variable
BEGIN
    IF size < 1 THEN
        RAISE EXCEPTION 'an append holds at least one event' USING ERRCODE = 'data_exception';
    END IF;
    UPDATE vmorch.log_head AS h
       SET position = h.position + size, recorded_at = greatest(h.recorded_at, clock_timestamp())
     WHERE h.position >= (SELECT max(l.position) FROM vmorch.log_head AS l)
     RETURNING h.position - size + 1, h.recorded_at INTO first_position, recorded_at;
    IF expected = 0 THEN
        INSERT INTO vmorch.streams AS s VALUES (stream, size, first_position)
            ON CONFLICT ON CONSTRAINT streams_pkey DO NOTHING;
    ELSE
        UPDATE vmorch.streams AS s SET version = expected + size
         WHERE s.stream = append_alone.stream AND s.version = expected;
    END IF;
    IF NOT FOUND THEN
        UPDATE vmorch.log_head AS h SET position = first_position - 1 WHERE h.position = first_position + size - 1;
        actual := coalesce((SELECT s.version FROM vmorch.streams AS s WHERE s.stream = append_alone.stream), 0);
    ELSIF size = 1 THEN
        INSERT INTO vmorch.events VALUES
            (first_position, stream, expected + 1, kinds, schemas[1], datas::json, metas::json, recorded_at);
    ELSE
        INSERT INTO vmorch.events
        SELECT first_position - 1 + e.rank, stream, expected + e.rank, e.kind, e.schema, e.data::json, e.meta::json,
               recorded_at
          FROM unnest(string_to_array(kinds, E'\n'), schemas, string_to_array(datas, E'\n'),
                      string_to_array(metas, E'\n')) WITH ORDINALITY AS e(kind, schema, data, meta, rank);
        GET DIAGNOSTICS actual = ROW_COUNT;
        IF actual <> size THEN
            RAISE EXCEPTION 'the columns of the batch do not match' USING ERRCODE = 'data_exception';
        END IF;
        actual := NULL;
    END IF;
END $$;


-- The last position recorded at or before a moment, 0 if none was. Times never decrease along positions,
-- so halving the range needs no index on time.
CREATE FUNCTION vmorch.position_at(moment timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    low    bigint;      -- known to be at or before the moment
    high   bigint;      -- known to be after it
    middle bigint;
    noted  timestamptz;
BEGIN
    SELECT coalesce(min(e.position), 1) - 1 INTO low FROM vmorch.events AS e;
    SELECT h.position + 1 INTO STRICT high FROM vmorch.log_head AS h;
    WHILE high - low > 1 LOOP
        middle := (low + high) / 2;
        SELECT e.recorded_at INTO STRICT noted FROM vmorch.events AS e WHERE e.position = middle;
        IF noted <= moment THEN low := middle; ELSE high := middle; END IF;
    END LOOP;
    RETURN low;
END $$;


REVOKE ALL ON FUNCTION vmorch.append, vmorch.append_alone, vmorch.ensure_partitions, vmorch.position_at FROM PUBLIC;
GRANT USAGE ON SCHEMA vmorch TO vmorch_app, vmorch_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA vmorch TO vmorch_app, vmorch_auditor;
GRANT INSERT, UPDATE, DELETE ON vmorch.checkpoints TO vmorch_app;
GRANT EXECUTE ON FUNCTION vmorch.position_at TO vmorch_app, vmorch_auditor;
GRANT EXECUTE ON FUNCTION vmorch.append, vmorch.append_alone, vmorch.ensure_partitions TO vmorch_app;
SELECT vmorch.ensure_partitions();
