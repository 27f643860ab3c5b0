"""Names and units that must not be mistaken for each other.

Ids are opaque strings (time-ordered UUIDs made by the composition root); the types exist so that a
checker refuses a host where a VM is meant. Must not create ids: randomness is an effect.
"""

from typing import Literal, NewType

VmId = NewType("VmId", str)
HostId = NewType("HostId", str)
ImageId = NewType("ImageId", str)
OperationId = NewType("OperationId", str)
DrainId = NewType("DrainId", str)
VolumeId = NewType("VolumeId", str)
BackupId = NewType("BackupId", str)
"""The id of the operation that took the backup."""
CommandId = NewType("CommandId", str)
SessionId = NewType("SessionId", str)
RequestId = NewType("RequestId", str)
Digest = NewType("Digest", str)
"""Lower-case hexadecimal SHA-256 of an image's bytes."""

Stream = NewType("Stream", str)
"""`<kind>/<id>`, for example `vm/0192f0c1-...`."""
Position = NewType("Position", int)
"""Place of an event in the whole log: 1, 2, 3 ... without gaps, in commit order."""

MiB = NewType("MiB", int)
GiB = NewType("GiB", int)
Seconds = NewType("Seconds", float)

AggregateKind = Literal[
    "vm", "host", "image", "token", "cluster", "drain", "budget", "maintenance", "backup", "volume", "audit"
]


def stream(kind: AggregateKind, id: str) -> Stream:
    """The stream that holds every event of one aggregate."""
    return Stream(f"{kind}/{id}")


def split_stream(name: str) -> tuple[str, str]:
    """The kind and the id of a stream's name."""
    kind, _, id = name.partition("/")
    return kind, id
