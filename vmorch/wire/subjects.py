"""Names on the bus. A host's own subjects carry its id; its permissions confine it to them.

Must not connect to anything.
"""

from urllib.parse import quote

from vmorch.core.ids import HostId, Stream, VmId, split_stream


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


def published(cluster: str, at: Stream, kind: str) -> str:
    """Where an event of a stream goes out, such as `vmorch.c.log.vm.ID.vm.renamed`; a kind keeps its own dots."""
    aggregate, id = split_stream(at)
    # an id of somebody else's making must not add words to the subject
    word = quote(id, safe="").replace(".", "%2E")
    return f"vmorch.{cluster}.log.{aggregate}.{word}.{kind}"


def published_log(cluster: str) -> str:
    """Every published event."""
    return f"vmorch.{cluster}.log.>"


def published_stream(cluster: str) -> str:
    """The name of the JetStream stream that holds the published events."""
    return f"vmorch-{cluster}"


def publisher_inbox(cluster: str) -> str:
    """The prefix of the publisher's reply subjects."""
    return f"_INBOX_publisher_{cluster}"


def reader_inbox(reader: str) -> str:
    """The prefix of a reader's reply subjects."""
    return f"_INBOX_reader_{reader}"
