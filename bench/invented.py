"""A log as long as wanted, invented: clusters of three hosts each, whose operators and hosts act at random.

One cluster's history is decided by the real core with a seed; further clusters are copies of it under other ids, so
that a million events are there in seconds. Must not be mistaken for a customer's log: VMs live shorter here.
"""

import re
from collections.abc import Iterator
from itertools import islice

from tests.core.histories import random_history
from vmorch.core.codec import encode
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Append, NewEvent, Recorded, StreamAppend

EVENTS_OF_A_CLUSTER = 20_000
_IDS = re.compile(rb'"(vm-vm-|host-h|op-|session-h|drain-)')


def log(events: int, *, seed: int = 7, clusters: int | None = None) -> Iterator[Recorded]:
    """Exactly `events` records with gapless positions; all clusters live at the same time, eight VMs in each."""
    clusters = clusters or -(-events // EVENTS_OF_A_CLUSTER)
    facts = random_history(seed, -(-events // clusters)).facts
    template = [(fact, encode(fact.event, fact.meta)) for fact in facts]
    position = 0
    for fact, new in template:
        kind, _, id = fact.stream.partition("/")
        for cluster in range(clusters):
            position += 1
            if position > events:
                return
            yield Recorded(
                position=Position(position),
                stream=Stream(f"{kind}/{_renamed(id, cluster)}"),
                version=fact.version,
                kind=new.kind,
                schema=new.schema,
                data=_IDS.sub(rb'"\g<1>r%d-' % cluster, new.data),
                meta=new.meta,
                recorded_at=fact.recorded_at,
            )


def _renamed(id: str, cluster: int) -> str:
    found = re.match(r"vm-vm-|host-h|image-|drain-", id)
    assert found is not None, id
    return f"{found[0]}r{cluster}-{id[found.end() :]}"


def appends(records: Iterator[Recorded], size: int = 1000) -> Iterator[Append]:
    """The same events as appends of about `size`, each stream's in one piece."""
    while batch := list(islice(records, size)):
        streams: dict[Stream, list[Recorded]] = {}
        for record in batch:
            streams.setdefault(record.stream, []).append(record)
        yield Append(
            streams=tuple(
                StreamAppend(
                    stream=stream,
                    expected=of[0].version - 1,
                    events=tuple(NewEvent(kind=r.kind, schema=r.schema, data=r.data, meta=r.meta) for r in of),
                )
                for stream, of in streams.items()
            )
        )
