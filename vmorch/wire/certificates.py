"""What hosts are told about certificates; sealed by the control plane like every other word to a host."""

from msgspec import Struct

from vmorch.core.ids import HostId


class Issued(Struct, frozen=True, kw_only=True):
    """All in PEM: the host's new certificate, the authority that every host of the cluster trusts, and the list of the
    certificates that are to be trusted no more."""

    host: HostId
    certificate: str
    authority: str
    revoked: str


class Revoked(Struct, frozen=True, kw_only=True):
    """The list of the certificates that are to be trusted no more, in PEM. Sealed too, although the authority signed
    it: so a host knows a new authority from a forger."""

    revoked: str
