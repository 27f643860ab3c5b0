"""JSON Schemas of what the API answers, put together from the resources' types.

Must not restate a field of a resource: those come from its struct.
"""

from collections.abc import Mapping
from typing import Any

from vmorch.core.maintenance_resources import GroupResource
from vmorch.core.operations.rollback import Prospect

Schema = Mapping[str, Any]

REFERENCE = "#/components/schemas/{name}"

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
POSITION: Schema = {"type": "integer", "minimum": 0}
COUNTS: Schema = {"type": "object", "additionalProperties": INTEGER}


def ref(type: type) -> Schema:
    """A reference to a type's schema."""
    return {"$ref": REFERENCE.format(name=type.__name__)}


def nullable(schema: Schema) -> Schema:
    """That, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def array(items: Schema) -> Schema:
    """A list of those."""
    return {"type": "array", "items": items}


def record(**fields: Schema) -> Schema:
    """An object in which all of these fields are."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def document(kind: str, **fields: Schema) -> Schema:
    """A document of a kind."""
    return record(apiVersion={"const": "v1"}, kind={"const": kind}, **fields)


AS_OF = record(position=POSITION, time=nullable(TIME))


def single(kind: str, type: type) -> Schema:
    """One object."""
    return document(kind, asOf=AS_OF, item=ref(type))


def listing(kind: str, type: type) -> Schema:
    """A page of objects."""
    return document(f"{kind}List", asOf=AS_OF, items=array(ref(type)), next=nullable(STRING))


ACCEPTED = document("Accepted", subject=STRING, name=STRING, position=POSITION, operation=nullable(STRING))
PLAN = document(
    "Plan",
    host=nullable(STRING),
    verdicts=array(record(name=STRING, fits=BOOLEAN, score=NUMBER, reason=STRING)),
    steps=array(STRING),
    spec={},
    rollback=nullable(ref(Prospect)),
    position=POSITION,
)
ACCEPTED_OR_PLAN: Schema = {"oneOf": [ACCEPTED, PLAN]}
MAINTENANCE_PLAN = document("MaintenancePlan", groups=array(ref(GroupResource)), position=POSITION)
ACCEPTED_OR_GROUPS: Schema = {"oneOf": [ACCEPTED, MAINTENANCE_PLAN]}
INVITATION = document("Invitation", host=STRING, name=STRING, token=STRING, expires=TIME, position=POSITION)
ENROLMENT = document(
    "Enrolment",
    host=STRING,
    name=STRING,
    cluster=STRING,
    incarnation=STRING,
    server_key=STRING,
    nats_url=STRING,
    credentials=STRING,
)
CREDENTIALS = document("Credentials", credentials=STRING)
ISSUED = record(body=record(host=STRING, certificate=STRING, authority=STRING, revoked=STRING), sig=STRING)
REVOKED = record(body=record(revoked=STRING), sig=STRING)
NEW_TOKEN = document(
    "NewToken", id=STRING, name=STRING, role=STRING, expires=nullable(TIME), token=STRING, position=POSITION
)
IDENTITY = document(
    "Identity",
    id=STRING,
    name=STRING,
    role=STRING,
    roles=array(STRING),
    expires=nullable(TIME),
    cluster=STRING,
)
STATUS = document(
    "Status",
    asOf=AS_OF,
    cluster=STRING,
    version=STRING,
    incarnation=STRING,
    head=nullable(POSITION),
    hosts=COUNTS,
    vms=COUNTS,
    operations=INTEGER,
    clearMigration=BOOLEAN,
    projectionLag=nullable(INTEGER),
    postgres=BOOLEAN,
    nats=nullable(BOOLEAN),
)
AUDIT_STATUS = document(
    "AuditStatus",
    origin=STRING,
    key=STRING,
    head=POSITION,
    sealed=POSITION,
    stopped=nullable(record(code=STRING, detail=STRING, since=TIME)),
)
CHECKPOINT = document(
    "Checkpoint",
    size=POSITION,
    note=STRING,
    turns=array(record(event={"type": "object"}, left=array(STRING), note=STRING)),
)
CONSISTENCY = document("Consistency", old=POSITION, size=POSITION, hashes=array(STRING))
INCLUSION = document(
    "Inclusion", position=POSITION, size=POSITION, leaf=STRING, hashes=array(STRING), note=STRING
)
PROJECTION = record(name=STRING, position=POSITION, head=POSITION, poisoned={}, trouble=STRING)
HEALTH = document("Health", status=STRING, version=STRING)


def plain(kind: str, items: Schema) -> Schema:
    """A list that is not computed from the log."""
    return document(f"{kind}List", items=array(items))
