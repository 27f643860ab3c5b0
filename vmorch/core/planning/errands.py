"""What a host in maintenance is asked to do outside any VM's operation: the order, its id, and what an answer means.

Must not send anything.
"""

from datetime import datetime

from vmorch.core.aggregates.maintenance import Errand, ErrandDone, ErrandFailed, Maintenance, MaintenanceEvent, Station
from vmorch.core.codec import Packed, pack
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Answer, Failed, ObserveDomain, RunHook
from vmorch.core.ids import CommandId, HostId, VmId, stream
from vmorch.core.operation import Change, change
from vmorch.core.planning.maintaining import CHECKING, HOOKING


def errand_id(maintenance: Maintenance, host: HostId) -> CommandId:
    """The id of the order that a host's errand is sent as: always the same for the same errand."""
    station = maintenance.stations[host]
    number = maintenance.hosts.index(host)
    return CommandId(f"{maintenance.id}.{number}.{station.errand}.{station.attempt}")


def order_of(maintenance: Maintenance, errand: Errand) -> Packed:
    """What the host is told."""
    match errand:
        case "before":
            return pack(RunHook(name="before-maintenance", run=f"{maintenance.id}-before"))
        case "after":
            return pack(RunHook(name="after-maintenance", run=f"{maintenance.id}-after"))
        case "probe":
            # there is no such domain: only libvirt itself can say so
            return pack(ObserveDomain(vm=VmId(maintenance.id)))


def time_left(station: Station, now: datetime) -> float:
    """Seconds that a host still has for its errand."""
    assert station.since is not None
    limit = CHECKING if station.errand == "probe" else HOOKING
    return (station.since + limit - now).total_seconds()


def answered(fleet: Fleet, host: HostId, id: CommandId, answer: Answer) -> list[Change]:
    """What a host's answer to an errand adds; nothing if it is not the one that is waited for."""
    found = fleet.maintenances.get(id.partition(".")[0])
    station = None if found is None else found.stations.get(host)
    if found is None or not found.running or station is None or station.errand is None:
        return []
    if errand_id(found, host) != id:
        return []
    event: MaintenanceEvent = ErrandDone(host=host, errand=station.errand)
    if isinstance(answer, Failed):
        event = ErrandFailed(host=host, errand=station.errand, code=answer.code, message=answer.message)
    return [change(stream("maintenance", found.id), event)]
