"""Choose a host for a VM: filters say who cannot, scores say who should, and both say why.

The rules are a table, so that the reason shown is the rule that decided. Must not reserve anything.
"""

from collections.abc import Callable, Iterator, Mapping

from vmorch.core.aggregates.host import Host, Reservation
from vmorch.core.aggregates.vm import Vm
from vmorch.core.errors import Rejected
from vmorch.core.ids import HostId, VmId
from vmorch.core.planning.view import ClusterView
from vmorch.core.spec import VmSpec
from vmorch.core.value import Value


class Verdict(Value, frozen=True, kw_only=True):
    """What placement thinks of one host: why it cannot (`against`) or how well it would (`score`, 0 to 100)."""

    host: HostId
    name: str
    against: str = ""
    score: float = 0.0
    why: str = ""


class Placement(Value, frozen=True, kw_only=True):
    """The chosen host and the verdict on every host, best first."""

    host: Host
    verdicts: tuple[Verdict, ...]

    def summary(self) -> dict[str, str]:
        """Host name -> reason, to be kept with the decision."""
        return {each.name: each.against or f"score {each.score:.0f}: {each.why}" for each in self.verdicts}


class Question(Value, frozen=True, kw_only=True):
    """May this VM stand on this host? `moving` names a VM that exists and comes from another one."""

    spec: VmSpec
    labels: Mapping[str, str]
    host: Host
    neighbours: tuple[Vm, ...]
    shared_promised: float
    """What all hosts together promised to others of the storage that this one shares with them, in GiB."""
    moving: VmId | None = None


Rule = Callable[[Question], str]
"""Why not, in words; empty if nothing speaks against the host."""


def place(view: ClusterView, spec: VmSpec, labels: Mapping[str, str]) -> Placement:
    """The best host for a VM of this spec and these labels. Deterministic: ties go to the host's name.

    Raises Rejected `no-host-fits` with the reason of every host.
    """
    verdicts: list[tuple[Verdict, Host]] = []
    shared: dict[str, float] = {}
    for host in view.hosts:
        if host.facts:
            shared[host.facts.shared_id] = shared.get(host.facts.shared_id, 0.0) + host.promised().shared_gib
    for host in view.hosts:
        question = Question(
            spec=spec,
            labels=labels,
            host=host,
            neighbours=view.neighbours(host.id),
            shared_promised=shared.get(host.facts.shared_id, 0.0) if host.facts else 0.0,
        )
        verdicts.append((_judge(question), host))
    verdicts.sort(key=lambda pair: (bool(pair[0].against), -pair[0].score, pair[0].name))
    if not verdicts or verdicts[0][0].against:
        facts = {verdict.name: verdict.against for verdict, _ in verdicts}
        raise Rejected(
            "no-host-fits",
            f"none of {len(verdicts)} hosts can take the VM" if verdicts else "the cluster has no hosts",
            hint="vmorch host list" if verdicts else "vmorch host enroll NAME",
            facts=facts,
        )
    return Placement(host=verdicts[0][1], verdicts=tuple(verdict for verdict, _ in verdicts))


def _judge(question: Question) -> Verdict:
    host = question.host
    against = next(objections(question), "")
    if against:
        return Verdict(host=host.id, name=host.name, against=against)
    found, why = score(question)
    return Verdict(host=host.id, name=host.name, score=found, why=why)


def objections(question: Question, rules: tuple[Rule, ...] | None = None) -> Iterator[str]:
    """Everything that speaks against the host, in the order of the rules: of all of them, unless some are given."""
    return filter(None, (rule(question) for rule in (FILTERS if rules is None else rules)))


def _agent(question: Question) -> str:
    match question.host.agent:
        case "connected":
            return ""
        case "invited":
            return "not enrolled yet"
        case _:
            return "agent unreachable"


def _cordon(question: Question) -> str:
    reason = question.host.cordoned
    if reason is None:
        return ""
    return f"cordoned ({reason})" if reason else "cordoned"


def _named(question: Question) -> str:
    # where a VM was first put does not bind it: labels of hosts do
    wanted = question.spec.placing.host if question.moving is None else None
    return f"not {wanted}, which was asked for" if wanted and question.host.name != wanted else ""


def _host_labels(question: Question) -> str:
    lacking = [
        f"{key}={value}"
        for key, value in question.spec.placing.host_labels.items()
        if question.host.labels.get(key) != value
    ]
    return f"lacks label {', '.join(lacking)}" if lacking else ""


def _networks(question: Question) -> str:
    facts = question.host.facts
    have = facts.networks if facts else ()
    lacking = sorted({nic.network for nic in question.spec.nics if nic.network and nic.network not in have})
    return f"has no network {', '.join(lacking)}" if lacking else ""


def _capacity(question: Question) -> str:
    return question.host.shortfall(Reservation.of(question.spec), question.moving)


def _shared_storage(question: Question) -> str:
    asked = Reservation.of(question.spec).shared_gib
    total = question.host.total().shared_gib
    if asked and asked > total - question.shared_promised:
        return f"needs {asked} GiB shared disk, {max(total - question.shared_promised, 0):g} left of {total:g}"
    return ""


def _keeps_away(question: Question) -> str:
    mine = question.spec.placing.away_from
    for vm in question.neighbours:
        theirs = vm.spec.placing.away_from if vm.spec else {}
        if _matches(mine, vm.labels) or _matches(theirs, question.labels):
            return f"must keep away from {vm.name}"
    return ""


def _matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(wanted) and all(labels.get(key) == value for key, value in wanted.items())


FITNESS: tuple[Rule, ...] = (_agent, _cordon, _named, _host_labels, _networks)
"""What depends on the host and the VM alone, whatever else stands there."""
CROWD: tuple[Rule, ...] = (_keeps_away, _capacity, _shared_storage)
"""What depends on the others."""
FILTERS: tuple[Rule, ...] = (*FITNESS, *CROWD)
"""In this order: the first that objects gives the reason that people see."""


def score(question: Question) -> tuple[float, str]:
    """0 to 100: the fraction left of the scarcest of memory, vCPUs and local disk once the VM is there."""
    host = question.host
    asked = Reservation.of(question.spec)
    total, promised = host.total(), host.promised(without=question.moving)
    left = {
        "memory": _left(total.memory, promised.memory + asked.memory),
        "vCPUs": _left(total.vcpus, promised.vcpus + asked.vcpus),
    }
    if asked.local_gib:
        left["local disk"] = _left(total.local_gib, promised.local_gib + asked.local_gib)
    scarcest = min(left, key=lambda resource: (left[resource], resource))
    return 100 * left[scarcest], f"{left[scarcest]:.0%} of {scarcest} left"


def _left(total: float, used: float) -> float:
    return max(0.0, 1 - used / total) if total else 0.0
