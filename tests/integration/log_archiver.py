"""A process that archives: `python log_archiver.py APP_URL OWNER_URL DIRECTORY ORIGIN UNTIL STAGE POSITION`.

It ends at once, as if it were killed, when it comes to that stage at that position; with the stage `restored` or
`restoring` it brings everything back instead.
"""

import asyncio
import os
import sys
from pathlib import Path

from archived import archiving_of
from databases import Database

from vmorch.core.ids import Position
from vmorch.log.store import EventLog


async def work(app_url: str, owner_url: str, directory: Path, origin: str, until: int, stage: str, at: int) -> None:
    def progress(now: str, position: int) -> None:
        print(now, position, flush=True)
        if (now, position) == (stage, at):
            os._exit(9)

    log = await EventLog.open(app_url, directory)
    database = Database(owner_url=owner_url, app_url=app_url, auditor_url="")
    async with archiving_of(database, log, origin, directory, progress) as (archiving, partitions):
        if stage.startswith("restor"):
            for each in await partitions.archives():
                await archiving.restore(each, directory)
        for candidate in await archiving.candidates(Position(until)):
            await archiving.archive(candidate)
    await log.close()


if __name__ == "__main__":
    app, owner, place, origin, until, stage, at = sys.argv[1:]
    asyncio.run(work(app, owner, Path(place), origin, int(until), stage, int(at)))
