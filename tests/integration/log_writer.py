"""A writer process for the log's concurrency tests: `python log_writer.py URL NAME APPENDS`.

Appends to its own stream and fights over shared ones; prints `stream version position` for each event it
was promised, so that the test can hold the log to its word.
"""

import asyncio
import random
import sys

from logbook import an_append, on

from vmorch.core.ids import Stream
from vmorch.log.errors import VersionConflict
from vmorch.log.interface import Appended
from vmorch.log.store import EventLog


async def write(url: str, writer: str, appends: int) -> None:
    log = await EventLog.open(url)
    chance = random.Random(writer)

    async def caller(number: int) -> None:
        own, version = f"own/{writer}.{number}", 0
        for _ in range(appends):
            shared = f"shared/{chance.randrange(10)}"
            known = len(await log.read_stream(Stream(shared)))
            try:
                answer = await log.append(an_append(on(own, version, 2, note=writer), on(shared, known, note=writer)))
            except VersionConflict:
                answer = await log.append(an_append(on(own, version, 2, note=writer)))
            else:
                report(shared, known, answer, answer.last - answer.first)
            report(own, version, answer, 0)
            report(own, version + 1, answer, 1)
            version += 2

    await asyncio.gather(*(caller(number) for number in range(4)))
    await log.close()


def report(stream: str, version: int, answer: Appended, offset: int) -> None:
    print(stream, version + 1, answer.first + offset, flush=True)


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], sys.argv[2], int(sys.argv[3])))
