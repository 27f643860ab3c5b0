"""What sealing and verifying the log cost.

    python -m bench.seals [--rounds N] [--events N]

Append: 64 callers with one event each, and one caller with batches of 100, with the sealer running beside them in the
same process against the same without it, in turns. Verify: an export of the log, line by line as the offline verifier
reads it, against SHA-256 of the same lines and nothing else. Exits with 1 if appending with the sealer is below 0.8.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from bench.append import EVENT, Names
from vmorch.audit.notes import read_key
from vmorch.audit.verification import verify
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Append, StreamAppend
from vmorch.embedded import EmbeddedPostgres
from vmorch.engine.exports import prepare_export
from vmorch.engine.handle import Handler
from vmorch.engine.logkeys import LogKeys, log_origin
from vmorch.engine.masterkey import MasterKey
from vmorch.engine.recorder import Recorder
from vmorch.engine.sealer import Sealer
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.engine.world import World
from vmorch.log import schema
from vmorch.log.keyring import MemoryKeyring
from vmorch.log.seals import Seals
from vmorch.log.store import EventLog
from vmorch.system import SystemClock, new_id, secrets_of

PROMISED = 0.8
SECONDS = 6.0
"""Of a round: long enough that what is sealed after its end is a small part."""


class Bench:
    """A log with its sealer."""

    def __init__(self, log: EventLog, seals: Seals, keys: LogKeys, sealer: Sealer, key: str) -> None:
        self.log = log
        self.seals = seals
        self.keys = keys
        self.sealer = sealer
        self.key = key

    async def appended(self, callers: int, size: int, *, sealing: bool) -> tuple[float, int]:
        """Events per second, and how many the sealer had not reached when the time was over."""
        await self.sealer.seal()
        task = asyncio.create_task(self.sealer.run()) if sealing else None
        end = time.perf_counter() + SECONDS
        done = sum(await asyncio.gather(*(self._caller(number, size, end) for number in range(callers))))
        last = await self.seals.last()
        assert last is not None
        behind = await self.log.head() - last.size
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        return done / SECONDS, behind

    async def _caller(self, number: int, size: int, end: float) -> int:
        names, done = Names(str(number)), 0
        events = (EVENT,) * size
        while time.perf_counter() < end:
            stream, version = names.following(size)
            part = StreamAppend(stream=Stream(stream), expected=version, events=events)
            await self.log.append(Append(streams=(part,)))
            done += size
        return done

    async def export(self, events: int) -> list[bytes]:
        """The lines of an export."""
        found = await prepare_export(self.log, self.seals, self.keys.origin, None, Position(events))
        batches = [batch async for batch in found.lines()]
        return [line for batch in batches for line in batch.splitlines(keepends=True)]


async def opened(url: str, directory: Path) -> Bench:
    log, seals = await EventLog.open(url), Seals(url)
    world = World(log)
    await world.load()
    recorder = Recorder(world, SystemClock())
    keys = LogKeys(directory, log_origin("bench", log.incarnation))
    key = keys.create().text()
    nothing_sealed = SubjectKeys(MemoryKeyring(), MasterKey(bytes(32)), os.urandom)
    handler = Handler(recorder, new_id, secrets_of(b"bench"), nothing_sealed)
    await handler.announce_log_key(key, orphaned=False, actor="bench")
    return Bench(log, seals, keys, Sealer(log, seals, keys, recorder, SystemClock()), key)


async def measure(url: str, directory: Path, rounds: int, events: int) -> int:
    bench = await opened(url, directory)
    missed = False
    print(f"events/s, median of {rounds} rounds of {SECONDS:.0f} s; ratio: median (lowest-highest) of the rounds\n")
    for name, callers, size in (("64 callers, 1 event", 64, 1), ("1 caller, 100 events", 1, 100)):
        rates: dict[bool, list[float]] = {True: [], False: []}
        behind = 0
        for number in range(rounds):
            # whoever goes first alternates, so that a drifting machine favours neither
            for sealing in (True, False)[:: 1 if number % 2 else -1]:
                rate, left = await bench.appended(callers, size, sealing=sealing)
                rates[sealing].append(rate)
                behind = max(behind, left) if sealing else behind
        ratios = [one / other for one, other in zip(rates[True], rates[False], strict=True)]
        ratio = statistics.median(ratios)
        missed |= ratio < PROMISED
        print(
            f"{name:22} sealed {statistics.median(rates[True]):9,.0f}  alone {statistics.median(rates[False]):9,.0f}"
            f"  {ratio:5.2f} ({min(ratios):.2f}-{max(ratios):.2f})  promised {PROMISED}  most unsealed {behind:,}"
        )
    await bench.sealer.seal()
    events = min(events, await bench.log.head())
    lines = await bench.export(events)
    verified, bare = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        verdict = verify(lines, [read_key(bench.key)], part=True)
        verified.append(events / (time.perf_counter() - began))
        assert verdict.sound, verdict.findings
        began = time.perf_counter()
        for line in lines:
            sha256(line).digest()
        bare.append(events / (time.perf_counter() - began))
    ratios = [one / other for one, other in zip(verified, bare, strict=True)]
    print(
        f"{'verify':22} verify {statistics.median(verified):9,.0f}  SHA-256 {statistics.median(bare):7,.0f}"
        f"  {statistics.median(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        f"  {events:,} events, {sum(map(len, lines)) / events:,.0f} bytes each"
    )
    await bench.seals.close()
    await bench.log.close()
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=100_000, help="Events that are verified at most.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmorch-bench-") as place:
        Path(place).chmod(0o711)
        with EmbeddedPostgres(Path(place) / "postgres") as server:
            schema.upgrade(server.url())
            schema.create_logins(server.url())
            url = server.url(user=schema.APP_LOGIN)
            return asyncio.run(measure(url, Path(place) / "keys", given.rounds, given.events))


if __name__ == "__main__":
    sys.exit(main())
