"""A process that publishes a log until it is killed.

    python log_publisher.py DATABASE_URL NATS_URL KEYS_DIRECTORY CLUSTER
"""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from vmorch.bus.credentials import ensure_keys, publisher_credentials
from vmorch.bus.jetstream import Limits, Stream
from vmorch.bus.link import Link
from vmorch.engine.published import Published
from vmorch.log.store import EventLog
from vmorch.system import SystemClock
from vmorch.wire import subjects


async def main(database: str, nats: str, directory: str, cluster: str) -> None:
    keys = ensure_keys(Path(directory))
    log = await EventLog.open(database)
    link = await Link.connect(
        nats,
        "publisher",
        lambda: publisher_credentials(keys, cluster, datetime.now(UTC)),
        keys.publisher,
        subjects.publisher_inbox(cluster),
    )
    stream = Stream(link, subjects.published_stream(cluster), subjects.published_log(cluster))
    await Published(log, stream, cluster, Limits(seconds=0, bytes=1 << 28), SystemClock()).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
