"""Every route of the API and who may use it: the only list, and what is not in it does not exist.

Routing, access and the OpenAPI description all come from here. Must not hold logic.
"""

from typing import get_args

from vmorch.core.aggregates.budget import CreateBudget
from vmorch.core.aggregates.drain import ActivateHost, ApplyPlan, PlanDrain
from vmorch.core.aggregates.maintenance import CancelMaintenance, StartMaintenance
from vmorch.core.backup_resources import BackupDetail, BackupResource
from vmorch.core.drain_resources import BudgetResource, DrainDetail, DrainResource
from vmorch.core.maintenance_resources import MaintenanceResource
from vmorch.core.operations.create import CreateVm
from vmorch.core.operations.volumes import CreateVolume
from vmorch.core.resources import (
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
from vmorch.edge import shapes
from vmorch.edge.calls import Parameter, Route
from vmorch.edge.ports import HostVerb
from vmorch.edge.routes import (
    audit,
    backups,
    budgets,
    cluster,
    documents,
    drains,
    events,
    hosts,
    images,
    maintenance,
    operations,
    past,
    report,
    tokens,
    vms,
    volumes,
    why,
)
from vmorch.edge.shapes import BOOLEAN, POSITION, STRING, TIME, listing, plain, single
from vmorch.edge.streams import MEDIA_TYPE as SSE
from vmorch.engine.handle import ARGUMENTS, PolicyChange, Tuning

_MIN = Parameter(name="minPosition", about="wait up to 5 s until the answer shows this position", schema=POSITION)
_AS_OF = Parameter(name="asOf", about="the state as of @POSITION, a time, or -2h ago", schema=STRING)
_MIN_OR_THEN = (_MIN, _AS_OF)
_LIMIT = Parameter(
    name="limit", about="items on the page", schema={"type": "integer", "minimum": 1, "maximum": 10000, "default": 1000}
)
_AFTER = Parameter(name="after", about="`next` of the page before", schema=STRING)
_PAGING = (_LIMIT, _AFTER, _MIN, _AS_OF)
_NAME = Parameter(name="name", about="glob such as web-*", schema=STRING)
_STATE = Parameter(name="state", about="only in this state", schema=STRING)
_HOST = Parameter(name="host", about="only on this host", schema=STRING)
_LABEL = Parameter(name="label", about="key=value; all that are given must hold", schema=STRING, repeats=True)
_FIELD = Parameter(name="field", about="a field as the API shows it, such as power or spec.memory", schema=STRING)
_DRY_RUN = Parameter(name="dryRun", about="answer with the plan and change nothing", schema=BOOLEAN)
_WHAT_IF = (_DRY_RUN, _AS_OF)
_ACTOR = Parameter(name="actor", about="only by this actor", schema=STRING)
_OF_VM = Parameter(name="vm", about="name or id of a VM", schema=STRING)
_OF_OPERATIONS = (
    _OF_VM,
    _STATE,
    Parameter(name="verb", about="only this verb", schema=STRING),
    _ACTOR,
    Parameter(name="active", about="true: those that run; false: those that are over", schema=BOOLEAN),
)
_RUNNING = Parameter(name="active", about="true: those under way", schema=BOOLEAN)
_OF_DRAINS = (
    _STATE,
    _ACTOR,
    _RUNNING,
    Parameter(name="started", about="false: plans that were not carried out", schema=BOOLEAN),
)
_CAUSES = Parameter(name="causes", about="true: with the position of what each event follows from", schema=BOOLEAN)
_OF_EVENTS = (
    Parameter(name="stream", about="only this stream, such as vm/<id>", schema=STRING),
    Parameter(name="subject", about="only of this thing, such as vm/<name>", schema=STRING),
    Parameter(name="kind", about="glob such as vm.*", schema=STRING),
    _ACTOR,
    Parameter(name="operation", about="only of this operation", schema=STRING),
    Parameter(name="correlation", about="only of this correlation", schema=STRING),
    _CAUSES,
)
_AFTER_POSITION = Parameter(name="after", about="only later positions", schema=POSITION)
_SPAN = (
    Parameter(name="since", about="recorded at or after", schema=TIME),
    Parameter(name="until", about="recorded at or before", schema=TIME),
)
_OF_UPLOADS = (
    Parameter(name="sha256", about="refuse other bytes", schema=STRING),
    Parameter(name="format", about="refuse another format", schema={"enum": ["qcow2", "raw"]}),
    Parameter(name="source", about="where the bytes come from, for the record", schema=STRING),
)

_SINGLE_VM = single("Vm", VmResource)
_SINGLE_DRAIN = single("Drain", DrainDetail)
_SINGLE_IMAGE = single("Image", ImageResource)
_EVENT = single("Event", EventResource)
_CONTENT = {"type": "string", "format": "binary"}

_ABOUT = (
    Route(method="GET", path="/healthz", access="anyone", handler=cluster.healthz, summary="Whether the server runs",
          answer=shapes.HEALTH),
    Route(method="GET", path="/v1/errors", access="viewer", handler=documents.list_errors,
          summary="Every stable error code", answer=plain("Error", {})),
    Route(method="GET", path="/v1/schemas", access="viewer", handler=documents.list_schemas,
          summary="Every kind that has a schema", answer=plain("Schema", {})),
    Route(method="GET", path="/v1/schemas/{kind}", access="viewer", handler=documents.show_schema,
          summary="The JSON Schema of a resource, command or event",
          answer=shapes.document("Schema", name=STRING, schema={})),
)  # fmt: skip

_VMS = (
    Route(method="GET", path="/v1/vms", access="viewer", handler=vms.list_vms, summary="List VMs",
          parameters=(_NAME, _HOST, _STATE, _LABEL, *_PAGING), answer=listing("Vm", VmResource)),
    Route(method="GET", path="/v1/vms/{ref}", access="viewer", handler=vms.show_vm, summary="Describe a VM",
          parameters=_MIN_OR_THEN, answer=_SINGLE_VM),
    Route(method="GET", path="/v1/vms/{ref}/snapshots", access="viewer", handler=vms.list_snapshots,
          summary="List a VM's snapshots, in the order of their numbers", parameters=_MIN_OR_THEN,
          answer=listing("Snapshot", SnapshotResource)),
    Route(method="GET", path="/v1/vms/{ref}/snapshots/{snapshot}", access="viewer", handler=vms.show_snapshot,
          summary="Describe a snapshot", parameters=_MIN_OR_THEN, answer=single("Snapshot", SnapshotDetail)),
    Route(method="POST", path="/v1/vms", access="operator", handler=vms.create_vm, summary=CreateVm.summary,
          parameters=_WHAT_IF, body=CreateVm, status=202, answer=shapes.ACCEPTED_OR_PLAN),
    *(
        Route(method="POST", path=f"/v1/vms/{{ref}}/{verb}", access="operator", handler=vms.on_vm(command),
              summary=command.summary, parameters=_WHAT_IF, body=command, status=202,
              answer=shapes.ACCEPTED_OR_PLAN)
        for verb, command in vms.VERBS.items()
    ),
    Route(method="POST", path="/v1/vms/{ref}/{verb}", access="operator", handler=vms.no_such_verb,
          summary="", listed=False),
)  # fmt: skip

_OPERATIONS = (
    Route(method="GET", path="/v1/operations", access="viewer", handler=operations.list_operations,
          summary="List operations, newest first", parameters=(*_OF_OPERATIONS, *_PAGING),
          answer=listing("Operation", OperationResource)),
    Route(method="GET", path="/v1/operations/{id}", access="viewer", handler=operations.show_operation,
          summary="Describe an operation", parameters=_MIN_OR_THEN, answer=single("Operation", OperationResource)),
    Route(method="GET", path="/v1/operations/{id}/watch", access="viewer", handler=operations.watch_operation,
          summary="Watch an operation to its end", media_type=SSE, answer=STRING),
    Route(method="POST", path="/v1/operations/{id}/cancel", access="operator", handler=operations.cancel_operation,
          summary="Ask an operation to stop", status=202, answer=shapes.ACCEPTED),
    Route(method="POST", path="/v1/operations/{id}/tune", access="operator", handler=operations.tune_operation,
          summary="Change the limits of a migration under way", body=Tuning, status=202, answer=shapes.ACCEPTED),
)  # fmt: skip

_HOSTS = (
    Route(method="GET", path="/v1/hosts", access="viewer", handler=hosts.list_hosts, summary="List hosts",
          parameters=(_NAME, _STATE, _LABEL, *_PAGING), answer=listing("Host", HostResource)),
    Route(method="GET", path="/v1/hosts/{ref}", access="viewer", handler=hosts.show_host, summary="Describe a host",
          parameters=_MIN_OR_THEN, answer=single("Host", HostResource)),
    Route(method="POST", path="/v1/hosts", access="admin", handler=hosts.invite_host,
          summary="Invite a host to enrol", body=hosts.InviteHost, status=201, answer=shapes.INVITATION),
    Route(method="POST", path="/v1/enroll", access="anyone", handler=hosts.enroll_host,
          summary="Enrol a host by its one-time token", body=hosts.EnrollHost, answer=shapes.ENROLMENT),
    Route(method="GET", path="/v1/hosts/{ref}/credentials", access="host", handler=hosts.renew_credentials,
          summary="Renew a host's own bus credentials", answer=shapes.CREDENTIALS),
    Route(method="POST", path="/v1/hosts/{ref}/certificate", access="host", handler=hosts.certify_host,
          summary="Sign a host's own certificate; the answer is sealed by the control plane",
          body=hosts.CertificateRequest, answer=shapes.ISSUED),
    Route(method="GET", path="/v1/certificates/revoked", access="host or operator", handler=hosts.revoked,
          summary="The certificates of hosts that are to be trusted no more (a CRL), sealed by the control plane",
          answer=shapes.REVOKED),
    *(
        Route(method="POST", path=f"/v1/hosts/{{ref}}/{verb}", access="admin", handler=hosts.on_host(verb),
              summary=f"{verb.capitalize()} a host", body=ARGUMENTS[verb], status=202, answer=shapes.ACCEPTED)
        for verb in get_args(HostVerb)
    ),
    Route(method="POST", path="/v1/hosts/{ref}/activate", access="admin", handler=drains.activate_host,
          summary=ActivateHost.summary, body=ActivateHost, status=202, answer=shapes.ACCEPTED),
    Route(method="POST", path="/v1/hosts/{ref}/maintenance-done", access="admin", handler=maintenance.work_done,
          summary="Say that the work on a host in maintenance is done", status=202, answer=shapes.ACCEPTED),
    Route(method="POST", path="/v1/hosts/{ref}/{verb}", access="admin", handler=hosts.no_such_verb,
          summary="", listed=False),
)  # fmt: skip

_DRAINS = (
    Route(method="GET", path="/v1/drains", access="viewer", handler=drains.list_drains,
          summary="List drains and plans, newest first", parameters=(*_OF_DRAINS, *_PAGING),
          answer=listing("Drain", DrainResource)),
    Route(method="GET", path="/v1/drains/{id}", access="viewer", handler=drains.show_drain,
          summary="Describe a drain or plan, VM by VM", parameters=_MIN_OR_THEN, answer=_SINGLE_DRAIN),
    Route(method="GET", path="/v1/drains/{id}/watch", access="viewer", handler=drains.watch_drain,
          summary="Watch a drain to its end", media_type=SSE, answer=STRING),
    Route(method="POST", path="/v1/drains", access="admin", handler=drains.plan_drain, summary=PlanDrain.summary,
          body=PlanDrain, parameters=_WHAT_IF, status=202, answer={"oneOf": [shapes.ACCEPTED, _SINGLE_DRAIN]}),
    Route(method="POST", path="/v1/drains/{id}/apply", access="admin", handler=drains.apply_plan,
          summary=ApplyPlan.summary, body=ApplyPlan, status=202, answer=shapes.ACCEPTED),
    Route(method="POST", path="/v1/drains/{id}/discard", access="admin", handler=drains.discard_plan,
          summary="Give a plan up", status=202, answer=shapes.ACCEPTED),
    Route(method="POST", path="/v1/drains/{id}/cancel", access="admin", handler=drains.cancel_drain,
          summary="End a drain and take back what is under way", status=202, answer=shapes.ACCEPTED),
)  # fmt: skip

_MAINTENANCES = (
    Route(method="GET", path="/v1/maintenances", access="viewer", handler=maintenance.list_maintenances,
          summary="List maintenances, newest first", parameters=(_RUNNING, *_PAGING),
          answer=listing("Maintenance", MaintenanceResource)),
    Route(method="GET", path="/v1/maintenances/{id}", access="viewer", handler=maintenance.show_maintenance,
          summary="Describe a maintenance, host by host", parameters=_MIN_OR_THEN,
          answer=single("Maintenance", MaintenanceResource)),
    Route(method="GET", path="/v1/maintenances/{id}/watch", access="viewer", handler=maintenance.watch_maintenance,
          summary="Watch a maintenance to its end", media_type=SSE, answer=STRING),
    Route(method="POST", path="/v1/maintenances", access="admin", handler=maintenance.start_maintenance,
          summary=StartMaintenance.summary, parameters=_WHAT_IF, body=StartMaintenance, status=202,
          answer=shapes.ACCEPTED_OR_GROUPS),
    Route(method="POST", path="/v1/maintenances/{id}/cancel", access="admin", handler=maintenance.cancel_maintenance,
          summary=CancelMaintenance.summary, body=CancelMaintenance, status=202, answer=shapes.ACCEPTED),
)  # fmt: skip

_BUDGETS = (
    Route(method="GET", path="/v1/budgets", access="viewer", handler=budgets.list_budgets, summary="List budgets",
          parameters=(_NAME, *_PAGING), answer=listing("Budget", BudgetResource)),
    Route(method="GET", path="/v1/budgets/{ref}", access="viewer", handler=budgets.show_budget,
          summary="Describe a budget", parameters=(_AS_OF,), answer=single("Budget", BudgetResource)),
    Route(method="POST", path="/v1/budgets", access="operator", handler=budgets.create_budget,
          summary=CreateBudget.summary, body=CreateBudget, status=201, answer=shapes.ACCEPTED),
    Route(method="POST", path="/v1/budgets/{ref}/delete", access="operator", handler=budgets.delete_budget,
          summary="Delete a budget", status=202, answer=shapes.ACCEPTED),
)  # fmt: skip

_BACKUPS = (
    Route(method="GET", path="/v1/backups", access="viewer", handler=backups.list_backups,
          summary="List backups, newest first", parameters=(_NAME, _OF_VM, *_PAGING),
          answer=listing("Backup", BackupResource)),
    Route(method="GET", path="/v1/backups/{ref}", access="viewer", handler=backups.show_backup,
          summary="Describe a backup", parameters=_MIN_OR_THEN, answer=single("Backup", BackupDetail)),
    Route(method="GET", path="/v1/vms/{ref}/backups", access="viewer", handler=backups.list_of_vm,
          summary="List a VM's backups, newest first", parameters=_PAGING, answer=listing("Backup", BackupResource)),
    *(
        Route(method="POST", path=f"/v1/backups/{{ref}}/{verb}", access="operator", handler=backups.on_backup(command),
              summary=command.summary, parameters=_WHAT_IF, body=command, status=202,
              answer=shapes.ACCEPTED_OR_PLAN)
        for verb, command in backups.VERBS.items()
    ),
)  # fmt: skip

_VOLUMES = (
    Route(method="GET", path="/v1/volumes", access="viewer", handler=volumes.list_volumes, summary="List volumes",
          parameters=(_NAME, _OF_VM, _HOST, _STATE, *_PAGING), answer=listing("Volume", VolumeResource)),
    Route(method="GET", path="/v1/volumes/{ref}", access="viewer", handler=volumes.show_volume,
          summary="Describe a volume", parameters=_MIN_OR_THEN, answer=single("Volume", VolumeResource)),
    Route(method="POST", path="/v1/volumes", access="operator", handler=volumes.create_volume,
          summary=CreateVolume.summary, parameters=_WHAT_IF, body=CreateVolume, status=202,
          answer=shapes.ACCEPTED_OR_PLAN),
    *(
        Route(method="POST", path=f"/v1/volumes/{{ref}}/{verb}", access="operator", handler=volumes.on_volume(command),
              summary=command.summary, parameters=_WHAT_IF, body=command, status=202,
              answer=shapes.ACCEPTED_OR_PLAN)
        for verb, command in volumes.VERBS.items()
    ),
    *(
        Route(method="POST", path=f"/v1/volumes/{{ref}}/{verb}", access="operator", handler=handler, summary=summary,
              parameters=_WHAT_IF, body=body, status=202, answer=shapes.ACCEPTED_OR_PLAN)
        for verb, (handler, body, summary) in volumes.OWN.items()
    ),
    Route(method="GET", path="/v1/strays", access="viewer", handler=volumes.list_strays,
          summary="List directories on hosts that nobody owns, as the hosts told them last", parameters=_PAGING,
          answer=listing("Stray", StrayResource)),
    *(
        Route(method="POST", path=f"/v1/strays/{{ref}}/{verb}", access="operator", handler=volumes.on_volume(command),
              summary=command.summary, parameters=_WHAT_IF, body=command, status=202,
              answer=shapes.ACCEPTED_OR_PLAN)
        for verb, command in volumes.ON_HOSTS.items()
    ),
)  # fmt: skip

_IMAGES = (
    Route(method="GET", path="/v1/images", access="viewer", handler=images.list_images, summary="List images",
          parameters=(_NAME, *_PAGING), answer=listing("Image", ImageResource)),
    Route(method="GET", path="/v1/images/{ref}", access="viewer", handler=images.show_image,
          summary="Describe an image", parameters=_MIN_OR_THEN, answer=_SINGLE_IMAGE),
    Route(method="POST", path="/v1/images", access="operator", handler=images.add_image,
          summary="Bring in the image behind a URL", body=images.AddImage, status=201, answer=_SINGLE_IMAGE),
    Route(method="PUT", path="/v1/images/{name}/content", access="operator", handler=images.upload_image,
          summary="Upload an image", upload=True, parameters=_OF_UPLOADS, status=201, answer=_SINGLE_IMAGE),
    Route(method="GET", path="/v1/images/{digest}/content", access="host or operator", handler=images.image_content,
          summary="An image's bytes", media_type="application/octet-stream", answer=_CONTENT),
    Route(method="POST", path="/v1/images/{ref}/remove", access="operator", handler=images.remove_image,
          summary="Remove an image", status=202, answer=shapes.ACCEPTED),
)  # fmt: skip

_EVENTS = (
    Route(method="GET", path="/v1/events", access="viewer", handler=events.list_events, summary="Read the log",
          parameters=(*_OF_EVENTS, _AFTER_POSITION, _LIMIT, _AS_OF, *_SPAN), answer=listing("Event", EventResource)),
    Route(method="GET", path="/v1/events/tail", access="viewer", handler=events.tail_events,
          summary="Follow the log; Last-Event-ID resumes", parameters=(*_OF_EVENTS, _AFTER_POSITION),
          media_type=SSE, answer=STRING),
    Route(method="GET", path="/v1/events/{position}", access="viewer", handler=events.show_event,
          summary="One event", parameters=(_CAUSES,), answer=_EVENT),
    Route(method="GET", path="/v1/events/{position}/causes", access="viewer", handler=why.causes,
          summary="An event and what it follows from, to the first", answer=listing("Event", EventResource)),
    Route(method="GET", path="/v1/why/{kind}/{ref}", access="viewer", handler=why.why,
          summary="The chain of causes behind one value", parameters=(_FIELD,), answer=single("Why", WhyResource)),
)  # fmt: skip

_AUDIT = (
    Route(method="GET", path="/v1/audit/status", access="viewer", handler=audit.status,
          summary="How far the log is sealed, and by which key", answer=shapes.AUDIT_STATUS),
    Route(method="GET", path="/v1/audit/checkpoint", access="auditor", handler=audit.checkpoint,
          summary="A signed checkpoint of the log, by default the newest (C2SP tlog-checkpoint)",
          parameters=(Parameter(name="size", about="of exactly so many events", schema=POSITION),),
          answer=shapes.CHECKPOINT),
    Route(method="GET", path="/v1/audit/consistency", access="auditor", handler=audit.growth,
          summary="The proof that the log of some size begins that of another (RFC 6962)",
          parameters=(Parameter(name="old", about="events of the smaller one", schema=POSITION),
                      Parameter(name="size", about="events of the larger one", schema=POSITION)),
          answer=shapes.CONSISTENCY),
    Route(method="GET", path="/v1/audit/inclusion/{position}", access="auditor", handler=audit.event_proof,
          summary="The proof that an event is in the log of the next checkpoint (RFC 6962)", answer=shapes.INCLUSION),
    Route(method="GET", path="/v1/audit/export", access="auditor", handler=audit.export, audited=True,
          summary="The log as CloudEvents with what proves them, one on each line",
          parameters=(Parameter(name="after", about="after this position", schema=POSITION),
                      Parameter(name="until", about="up to this position; by default all that is sealed",
                                schema=POSITION)),
          media_type=audit.NDJSON, answer=STRING),
    Route(method="POST", path="/v1/audit/erase", access="admin", handler=audit.erase,
          summary="Destroy the key of what is sealed for a subject, for ever", body=audit.Erase, status=202,
          answer=shapes.ACCEPTED),
)  # fmt: skip

_CLUSTER = (
    Route(method="GET", path="/v1/cluster", access="viewer", handler=cluster.show_cluster,
          summary="Describe the cluster's policy", parameters=_MIN_OR_THEN, answer=single("Cluster", ClusterResource)),
    Route(method="PATCH", path="/v1/cluster", access="admin", handler=cluster.set_policy,
          summary="Change the cluster's policy", body=PolicyChange, status=202, answer=shapes.ACCEPTED),
    Route(method="GET", path="/v1/status", access="viewer", handler=cluster.status, summary="The cluster at a glance",
          parameters=(_AS_OF,),
          answer=shapes.STATUS),
    Route(method="GET", path="/v1/doctor", access="viewer", handler=cluster.doctor,
          summary="What somebody should look at", answer=plain("Check", shapes.ref(cluster.Check))),
    Route(method="GET", path="/v1/projections", access="viewer", handler=cluster.projections,
          summary="How far the read models are", answer=plain("Projection", shapes.PROJECTION)),
    Route(method="POST", path="/v1/projections/rebuild", access="admin", handler=cluster.rebuild,
          summary="Compute the read models anew from the log",
          answer=shapes.document("Rebuilt", projections=shapes.array(shapes.PROJECTION), rebuilt={})),
)  # fmt: skip

_TOKENS = (
    Route(method="GET", path="/v1/whoami", access="viewer", handler=tokens.whoami, summary="Whose token this is",
          answer=shapes.IDENTITY),
    Route(method="GET", path="/v1/tokens", access="viewer", handler=tokens.list_tokens, summary="List tokens",
          parameters=(_NAME, _STATE, *_PAGING), answer=listing("Token", TokenResource)),
    Route(method="POST", path="/v1/tokens", access="admin", handler=tokens.create_token,
          summary="Make a token; its secret is told once", body=tokens.CreateToken, status=201,
          answer=shapes.NEW_TOKEN),
    Route(method="POST", path="/v1/tokens/{ref}/revoke", access="admin", handler=tokens.revoke_token,
          summary="Shut a token's bearer out", status=202, answer=shapes.ACCEPTED),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (
    *_ABOUT,
    *_VMS,
    *_OPERATIONS,
    *_HOSTS,
    *_DRAINS,
    *_MAINTENANCES,
    *_BUDGETS,
    *_BACKUPS,
    *_VOLUMES,
    *_IMAGES,
    *_EVENTS,
    *past.ROUTES,
    *_AUDIT,
    *report.ROUTES,
    *_CLUSTER,
    *_TOKENS,
)
