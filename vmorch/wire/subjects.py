"""Names on the bus. A host's own subjects carry its id; its permissions confine it to them.

Must not connect to anything.
"""

from vmorch.core.ids import HostId, VmId


def command(cluster: str, host: HostId) -> str:
    """Where a host's agent takes orders (request; answered at once with a Receipt)."""
    return f"vmorch.{cluster}.host.{host}.command"


def report(cluster: str, host: HostId) -> str:
    """Where a host's agent tells what happened (request; answered with a Confirmation)."""
    return f"vmorch.{cluster}.host.{host}.report"


def heartbeat(cluster: str, host: HostId) -> str:
    """Where a host's agent shows each second that it is there (no answer, nothing stored)."""
    return f"vmorch.{cluster}.host.{host}.heartbeat"


def telemetry(cluster: str, host: HostId, vm: VmId) -> str:
    """Where a host's agent shows how far a VM's passage has come (no answer, nothing stored)."""
    return f"vmorch.{cluster}.host.{host}.telemetry.{vm}"


def inbox(host: HostId) -> str:
    """The prefix of all reply subjects that a host's agent may listen on; nobody else may."""
    return f"_INBOX_host_{host}"


def server_inbox(cluster: str) -> str:
    """The prefix of the control plane's reply subjects."""
    return f"_INBOX_server_{cluster}"


def reports(cluster: str) -> str:
    """Every host's reports."""
    return f"vmorch.{cluster}.host.*.report"


def heartbeats(cluster: str) -> str:
    """Every host's heartbeats."""
    return f"vmorch.{cluster}.host.*.heartbeat"


def telemetries(cluster: str) -> str:
    """Every host's telemetry."""
    return f"vmorch.{cluster}.host.*.telemetry.*"


def host_of(subject: str) -> HostId:
    """The host that a subject of its own names; the broker lets only that host publish there."""
    return HostId(subject.split(".")[3])


def is_own_inbox(host: HostId, reply: str) -> bool:
    """Whether a reply subject lies in the host's own inbox. Answering any other would let a stolen
    credential make the control plane publish where the credential itself may not."""
    prefix = inbox(host) + "."
    return reply.startswith(prefix) and "*" not in reply and ">" not in reply
