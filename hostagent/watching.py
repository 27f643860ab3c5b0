"""Keep looking at the hypervisor: come back to it when it was away, and tell what changed without an order.

A look never overtakes an order's answer: a VM that was worked on since the look began is left out of it.
Must not change anything on the host.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import structlog

from hostagent.effects import Effects
from hostagent.hypervisor import Hypervisor, HypervisorLost, Inventory
from hostagent.inventory import another
from hostagent.journal import Journal
from vmorch.core.hostcommands import Observed
from vmorch.core.ids import VmId
from vmorch.core.spec import HostFacts

FULL_EVERY = 60.0
"""Seconds between two looks at everything, and at what the host is."""
FULL_AFTER_CHANGE = 3.0
"""Seconds until a change of one domain leads to a look at everything, configurations included."""
GATHER = 0.02
"""Seconds in which changes of the same domain become one glance."""
BLIND_AFTER = 15.0
"""Seconds without the hypervisor until its domains count as unknown; a daemon's restart takes less."""
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0

_log = structlog.get_logger(__name__)


class Watching:
    """Looks from `begin` on, once a minute and after each change."""

    def __init__(
        self,
        journal: Journal,
        hypervisor: Hypervisor,
        effects: Effects,
        told: Callable[[], None],
        outdated: Callable[[], None],
    ) -> None:
        """`told`: something new is in the outbox. `outdated`: the host is not what it said any more."""
        self._journal = journal
        self._hypervisor = hypervisor
        self._effects = effects
        self._told = told
        self._outdated = outdated
        self._facts: HostFacts | None = None
        self._facts_at = 0.0
        self._working: Counter[VmId] = Counter()
        self._worked: Counter[VmId] = Counter()
        self._changed: set[VmId] = set()
        self._stir = asyncio.Event()
        self._here = asyncio.Event()
        self._here.set()
        self._away = asyncio.Event()
        self._full_at: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._hypervisor.watch(self._on_change, self._on_lost)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._come_back(), name="hypervisor link")
            tasks.create_task(self._look_for_ever(), name="inventory")

    def begin(self, facts: HostFacts) -> None:
        """Look at everything now, and from now on each minute, also at whether the host still is what `facts` said."""
        self._full_at = self._effects.clock()
        self._facts, self._facts_at = facts, self._full_at + FULL_EVERY
        self._stir.set()

    def lost(self) -> None:
        """Somebody found the hypervisor away."""
        if self._here.is_set():
            _log.warning("hypervisor lost")
            self._here.clear()
            self._away.set()

    async def back(self) -> None:
        """Return when the hypervisor can be asked again."""
        await self._here.wait()

    async def ask_inventory(self) -> Inventory:
        """A look at everything, as soon as the hypervisor can be asked."""
        while True:
            await self.back()
            try:
                return await self._effects.blocking.run(self._hypervisor.inventory)
            except HypervisorLost:
                self.lost()

    @contextmanager
    def working_on(self, vm: VmId | None) -> Iterator[None]:
        """An order works on the VM: its answer will carry what is seen."""
        if vm is None:
            yield
            return
        self._working[vm] += 1
        self._worked[vm] += 1
        try:
            yield
        finally:
            self._working[vm] -= 1
            if not self._working[vm]:
                del self._working[vm]
            self.poke(vm)

    def poke(self, vm: VmId | None) -> None:
        """The VM, or with None any VM, may have changed. Only on the event loop's thread."""
        if self._full_at is None:
            return
        now = self._effects.clock()
        if vm is not None:
            self._changed.add(vm)
        self._full_at = min(self._full_at, now + (FULL_AFTER_CHANGE if vm is not None else GATHER))
        self._stir.set()

    def _on_change(self, vm: VmId | None) -> None:
        self._from_outside(lambda: self.poke(vm))

    def _on_lost(self) -> None:
        self._from_outside(self.lost)

    def _from_outside(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        # the loop may have ended while libvirt's own thread was on its way here
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def _settled_since(self) -> Callable[[VmId], bool]:
        """Whether nothing has worked on a VM since now: asked later, from the journal's thread."""
        working, worked = set(self._working), Counter(self._worked)
        return lambda vm: vm not in working and self._worked[vm] == worked[vm]

    async def _look_for_ever(self) -> None:
        while True:
            wait = None if self._full_at is None else max(0.0, self._full_at - self._effects.clock())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stir.wait()
            await asyncio.sleep(GATHER)
            self._stir.clear()
            await self.back()
            try:
                await self._look()
            except HypervisorLost:
                self.lost()

    async def _look(self) -> None:
        changed, self._changed = self._changed, set()
        if self._full_at is not None and self._effects.clock() >= self._full_at:
            self._full_at = self._effects.clock() + FULL_EVERY
            settled = self._settled_since()
            if await self._effects.blocking.run(lambda: self._journal.look(self._hypervisor.inventory(), settled)):
                self._told()
            await self._look_at_host()
            return
        for vm in sorted(changed):
            if vm in self._working:
                continue
            if await self._effects.blocking.run(self._glance_at(vm)):
                self._told()

    async def _look_at_host(self) -> None:
        if self._facts is None or self._effects.clock() < self._facts_at:
            return
        self._facts_at = self._effects.clock() + FULL_EVERY
        now = await self._effects.blocking.run(self._hypervisor.facts)
        if another(self._facts, now):
            _log.info("the host is not what it said any more")
            self._outdated()

    def _glance_at(self, vm: VmId) -> Callable[[], bool]:
        settled = self._settled_since()
        return lambda: self._journal.glance(vm, self._hypervisor.observe(vm), settled)

    async def _come_back(self) -> None:
        while True:
            await self._away.wait()
            since, wait = self._effects.clock(), _FIRST_WAIT
            blind = False
            while not self._here.is_set():
                try:
                    await self._effects.blocking.run(self._hypervisor.reconnect)
                except HypervisorLost as error:
                    if not blind and self._effects.clock() - since > BLIND_AFTER:
                        _log.error("hypervisor stays away", error=str(error))
                        blind = True
                        await self._effects.blocking.run(self._tell_unknown)
                        self._told()
                    await asyncio.sleep(wait * (0.5 + self._effects.chance() / 2))
                    wait = min(wait * 2, _LONGEST_WAIT)
                    continue
                _log.info("hypervisor is back")
                self._away.clear()
                self._here.set()
                self.poke(None)

    def _tell_unknown(self) -> None:
        unknown = Observed(power="unknown", reason="hypervisor unreachable")
        for vm in self._journal.seen():
            self._journal.glance(vm, unknown, lambda _vm: True)
