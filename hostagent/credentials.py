"""The bus credentials of one host: always the newest, on the disk and at hand, and renewed by HTTP when they
ran out while the bus was out of reach.

They are of use only to the holder of the host key. Must not judge them: the broker does.
"""

import asyncio
from base64 import urlsafe_b64decode
from binascii import Error as NotBase64
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from hostagent.effects import Effects
from hostagent.enrolment import EnrolmentError, renew_credentials
from hostagent.identity import Identity, load_credentials, save_credentials
from vmorch.bus.keys import KeyPair

_LOOK_EVERY, _LONGEST_WAIT = 2.0, 60.0
_log = structlog.get_logger(__name__)


class _Claims(Struct):
    exp: int = 0


class Credentials:
    """Reads and keeps `bus.jwt` in the state directory. Raises NotEnrolled when there is none."""

    def __init__(self, state_dir: Path, identity: Identity, pair: KeyPair, effects: Effects) -> None:
        self._state_dir = state_dir
        self._identity = identity
        self._pair = pair
        self._effects = effects
        self._newest = load_credentials(state_dir)

    def newest(self) -> str:
        """What to show the broker now."""
        return self._newest

    async def replace(self, credentials: str) -> None:
        """Show these from the next connection on."""
        if credentials != self._newest:
            self._newest = credentials
            await self._effects.blocking.run(lambda: save_credentials(self._state_dir, credentials))

    async def renew_while_away(self, connected: Callable[[], bool]) -> None:
        """Until cancelled: ask for new ones whenever there is no connection and the old ones have expired."""
        wait = _LOOK_EVERY
        while True:
            await asyncio.sleep(wait * (0.5 + self._effects.chance() / 2))
            now = self._effects.wall()
            if connected() or expires(self._newest) > now:
                wait = _LOOK_EVERY
                continue
            try:
                await self.replace(await self._effects.blocking.run(self._ask))
                _log.info("bus credentials renewed")
                wait = _LOOK_EVERY
            except EnrolmentError as error:
                _log.warning("bus credentials not renewed", code=error.code, error=str(error))
                wait = min(wait * 2, _LONGEST_WAIT)

    def _ask(self) -> str:
        return renew_credentials(self._identity, self._pair, self._effects.wall())


def expires(jwt: str) -> float:
    """When a JWT expires, in unix seconds; infinity if it never does or does not say it readably."""
    parts = jwt.split(".")
    if len(parts) != 3:
        return float("inf")
    try:
        claims = msgspec.json.decode(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)), type=_Claims)
    except (NotBase64, msgspec.MsgspecError):
        return float("inf")
    return float(claims.exp) if claims.exp else float("inf")
