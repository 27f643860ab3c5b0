"""Give an order to a host's agent, or take it back, and hear its receipt.

What is sealed in the log for a guest is opened here, on its way to the host, and nowhere else. Must not decide what is
ordered, nor repeat it.
"""

from msgspec.structs import replace

from vmorch.bus.bus import Bus, BusError
from vmorch.bus.keys import verifier
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm
from vmorch.core.codec import Packed, pack, unpack_host_command
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import WriteSeed
from vmorch.core.ids import CommandId
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.wire import subjects
from vmorch.wire.envelopes import Forged, Order, Receipt, Signer, ToAgent, Withdrawal, seal, unseal

RECEIPT = 5.0
"""Seconds to wait for an agent's receipt; it only journals before it gives one."""
ASK_AGAIN = 10.0
"""Seconds after which an accepted order is sent again; the agent then repeats an answer that got lost."""
RETRY = 0.5
"""Seconds between tries while host, bus or log are away."""
GRACE = 15.0
"""Seconds beyond a step's own deadline: the agent gives up by itself first and says so."""
FINAL_REFUSALS = frozenset(
    {"stale-epoch", "stale-incarnation", "identity-changed", "unknown-command"}
    | {"erased", "other-master-key", "key-damaged"}
)
"""Receipts that trying again cannot change, and what keeps an order from being sent at all."""


class Orders:
    """Speaks to the agents of connected hosts. A receipt that did not come is told as the reason, in words."""

    def __init__(self, bus: Bus, cluster: str, signer: Signer, incarnation: str, keys: SubjectKeys) -> None:
        self.bus = bus
        self.cluster = cluster
        self.signer = signer
        self.incarnation = incarnation
        self.keys = keys

    async def send(self, host: Host, vm: Vm | None, packed: Packed, id: CommandId, left: float) -> Receipt | str:
        """Have an order accepted that must be over `left` seconds from now. Without a VM it has no epoch to heed.

        What it needs and nobody can open is refused as a host would refuse it. Raises LogUnavailable.
        """
        assert host.session is not None
        try:
            command = await self._opened(packed)
        except Rejected as refusal:
            return Receipt(accepted=False, code=refusal.code, message=refusal.reason)
        order = Order(
            id=id,
            host=host.id,
            session=host.session,
            incarnation=self.incarnation,
            epoch=0 if vm is None else vm.epoch,
            deadline=max(1.0, left - GRACE),
            command=command,
        )
        return await self._say(host, order, left)

    async def withdraw(self, host: Host, vm: Vm, packed: Packed, id: CommandId, left: float) -> Receipt | str:
        """Have an order given up, or never begun."""
        assert host.session is not None
        withdrawal = Withdrawal(
            id=id,
            host=host.id,
            session=host.session,
            incarnation=self.incarnation,
            lane=unpack_host_command(packed).lane,
            vm=vm.id,
        )
        return await self._say(host, withdrawal, left)

    async def _opened(self, packed: Packed) -> Packed:
        if packed.kind != WriteSeed.kind:
            return packed
        command = unpack_host_command(packed)
        assert isinstance(command, WriteSeed)
        user_data = await self.keys.open(command.seed.user_data)
        return pack(replace(command, seed=replace(command.seed, user_data=user_data)))

    async def _say(self, host: Host, body: ToAgent, left: float) -> Receipt | str:
        try:
            data = await self.bus.request(
                subjects.command(self.cluster, host.id), seal(body, self.signer), timeout=min(RECEIPT, left)
            )
            receipt: Receipt = unseal(data, Receipt, verifier(host.key))
            return receipt
        except (BusError, Forged) as error:
            return f"{host.name}: {error}"
