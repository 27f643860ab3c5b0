"""The cluster's own settings: what holds for all hosts and VMs, changed by an admin and recorded like all else."""

from datetime import datetime
from typing import Annotated, ClassVar, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from vmorch.core.aggregates.certificate import Hex
from vmorch.core.errors import Rejected
from vmorch.core.ids import stream
from vmorch.core.messages import Event, message

ID: Final = "policy"
"""There is one such stream: `cluster/policy`."""
STREAM: Final = stream("cluster", ID)

Limit = Annotated[int, Meta(ge=1, le=1000)]


class Policy(Struct, frozen=True, kw_only=True):
    """Recorded whole, defaults included: another default some day must not change what was in force before.

    `clear_migration`: guests may travel unencrypted where a host has no certificate. The others bound how many
    guests travel at once: out of one host, into one host, in the whole cluster."""

    clear_migration: bool = False
    migrations_out: Limit = 4
    migrations_in: Limit = 4
    migrations: Limit = 32


class Cluster(Struct, frozen=True, kw_only=True):
    """The cluster, folded from its stream. `authority` is the SHA-256 of the certificate that all hosts trust."""

    version: int = 0
    policy: Policy = Policy()
    authority: str = ""


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
