"""What the API says about itself: its description, the schemas of its messages, its error codes."""

import msgspec
from starlette.responses import Response

from vmorch.core.backup_resources import BackupDetail, BackupResource
from vmorch.core.codes import CODES
from vmorch.core.differences import Difference
from vmorch.core.drain_resources import BudgetResource, DrainDetail, DrainResource
from vmorch.core.errors import Rejected
from vmorch.core.maintenance_resources import GroupResource, MaintenanceResource
from vmorch.core.messages import COMMANDS, EVENTS, HOST_COMMANDS
from vmorch.core.operations.rollback import Prospect
from vmorch.core.resources import (
    ActResource,
    ClusterResource,
    EventResource,
    HostResource,
    ImageResource,
    OperationResource,
    SnapshotDetail,
    SnapshotResource,
    TokenResource,
    VmResource,
    WhyResource,
)
from vmorch.core.volume_resources import StrayResource, VolumeResource
from vmorch.edge import answers
from vmorch.edge.calls import Call
from vmorch.engine.replay import Replayed

RESOURCES: dict[str, type] = {
    "Vm": VmResource,
    "Snapshot": SnapshotResource,
    "SnapshotDetail": SnapshotDetail,
    "Rollback": Prospect,
    "Host": HostResource,
    "Image": ImageResource,
    "Operation": OperationResource,
    "Token": TokenResource,
    "Cluster": ClusterResource,
    "Event": EventResource,
    "Act": ActResource,
    "Why": WhyResource,
    "Drain": DrainResource,
    "DrainDetail": DrainDetail,
    "Budget": BudgetResource,
    "Maintenance": MaintenanceResource,
    "MaintenanceGroup": GroupResource,
    "Backup": BackupResource,
    "BackupDetail": BackupDetail,
    "Volume": VolumeResource,
    "Stray": StrayResource,
    "Difference": Difference,
    "Replay": Replayed,
}


def _kinds() -> dict[str, type]:
    return {**RESOURCES, **COMMANDS, **EVENTS, **HOST_COMMANDS}


async def list_schemas(call: Call) -> Response:
    tables = (("resource", RESOURCES), ("command", COMMANDS), ("event", EVENTS), ("host command", HOST_COMMANDS))
    items = [{"kind": kind, "of": of} for of, table in tables for kind in sorted(table)]
    return answers.plain_listing("Schema", items)


async def show_schema(call: Call) -> Response:
    kind = call.path("kind")
    found = _kinds().get(kind)
    if found is None:
        raise Rejected("not-found", f"nothing is called {kind!r}", hint="vmorch schema")
    return answers.document("Schema", {"name": kind, "schema": msgspec.json.schema(found)})


async def list_errors(call: Call) -> Response:
    items = [{"code": name, **msgspec.to_builtins(code)} for name, code in CODES.items()]
    return answers.plain_listing("Error", items)
