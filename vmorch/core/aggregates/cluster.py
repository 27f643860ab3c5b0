"""The cluster's own settings: what holds for all hosts and VMs, changed by an admin and recorded like all else."""

from datetime import datetime
from typing import Annotated, ClassVar, Final

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.certificate import Hex
from vmorch.core.errors import Rejected
from vmorch.core.ids import stream
from vmorch.core.messages import Event, message
from vmorch.core.value import Value

ID: Final = "policy"
"""There is one such stream: `cluster/policy`."""
STREAM: Final = stream("cluster", ID)

Limit = Annotated[int, Meta(ge=1, le=1000)]


class Policy(Value, frozen=True, kw_only=True):
    """Recorded whole, defaults included: another default some day must not change what was in force before.

    `clear_migration`: guests may travel unencrypted where a host has no certificate. The others bound how many
    guests travel at once: out of one host, into one host, in the whole cluster."""

    clear_migration: bool = False
    migrations_out: Limit = 4
    migrations_in: Limit = 4
    migrations: Limit = 32


class Unsealed(Value, frozen=True, kw_only=True):
    """Why nothing more of the log is sealed: a stable code and the place, since a moment."""

    code: str
    detail: str
    since: datetime


class Cluster(Value, frozen=True, kw_only=True):
    """The cluster, folded from its stream. `authority` is the SHA-256 of the certificate that all hosts trust,
    `log_key` the public key that the log's checkpoints are signed with."""

    version: int = 0
    policy: Policy = Policy()
    authority: str = ""
    log_key: str = ""
    unsealed: Unsealed | None = None


class ClusterEvent(Event, frozen=True, kw_only=True):
    """A fact about the cluster as a whole."""

    subject: ClassVar[str] = "cluster"

    def apply(self, cluster: Cluster, at: datetime) -> Cluster:
        """The cluster after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("cluster.policy-set")
class PolicySet(ClusterEvent, frozen=True, kw_only=True):
    """The cluster's policy is this, whole."""

    policy: Policy

    def apply(self, cluster: Cluster, at: datetime) -> Cluster:
        return replace(cluster, policy=self.policy)


@message("cluster.authority-adopted")
class AuthorityAdopted(ClusterEvent, frozen=True, kw_only=True):
    """Hosts' certificates are signed by the authority with this certificate (its SHA-256), and by no other."""

    fingerprint: Hex

    def apply(self, cluster: Cluster, at: datetime) -> Cluster:
        return replace(cluster, authority=self.fingerprint)


@message("cluster.log-key-announced")
class LogKeyAnnounced(ClusterEvent, frozen=True, kw_only=True):
    """After this event the log's checkpoints are signed by this key (`name+id+key`) and by no other.

    The checkpoint that ends with this event is signed by the key before it, which vouches for this one so; `orphaned`:
    that key is lost, and nobody does.
    """

    key: Annotated[str, Meta(max_length=300)]
    orphaned: bool = False

    def apply(self, cluster: Cluster, at: datetime) -> Cluster:
        return replace(cluster, log_key=self.key)


@message("cluster.sealing-stopped")
class SealingStopped(ClusterEvent, frozen=True, kw_only=True):
    """Nothing more of the log is sealed: the detail says what stands in the way, and where."""

    code: str
    detail: str

    def apply(self, cluster: Cluster, at: datetime) -> Cluster:
        return replace(cluster, unsealed=Unsealed(code=self.code, detail=self.detail, since=at))


@message("cluster.sealing-resumed")
class SealingResumed(ClusterEvent, frozen=True, kw_only=True):
    """The log is sealed again."""

    def apply(self, cluster: Cluster, at: datetime) -> Cluster:
        return replace(cluster, unsealed=None)


def announce_log_key(cluster: Cluster, key: str, *, orphaned: bool = False) -> list[ClusterEvent]:
    """Let the log's checkpoints be signed by another key from now on."""
    return [] if key == cluster.log_key else [LogKeyAnnounced(key=key, orphaned=orphaned)]


def note_sealing(cluster: Cluster, refusal: tuple[str, str] | None) -> list[ClusterEvent]:
    """Whether the log is sealed, or else what stands in the way; nothing if that is known."""
    known = None if cluster.unsealed is None else (cluster.unsealed.code, cluster.unsealed.detail)
    if refusal == known:
        return []
    return [SealingResumed() if refusal is None else SealingStopped(code=refusal[0], detail=refusal[1])]


def adopt_authority(cluster: Cluster, fingerprint: str, *, instead: bool = False) -> list[ClusterEvent]:
    """See that this authority is the cluster's: the first one that signs is, another one only `instead` of it.

    Raises Rejected `other-authority`.
    """
    if fingerprint == cluster.authority:
        return []
    if cluster.authority and not instead:
        raise Rejected(
            "other-authority",
            "this server signs by another authority than the cluster's",
            hint="copy keys/ca-*.pem from another server; if they are lost: vmorch server init --new-authority",
        )
    return [AuthorityAdopted(fingerprint=fingerprint)]


def set_policy(cluster: Cluster, wanted: Policy) -> list[ClusterEvent]:
    """Change the policy. Raises Rejected `already-so`."""
    if wanted == cluster.policy:
        raise Rejected("already-so", "the cluster's policy is this already")
    return [PolicySet(policy=wanted)]
