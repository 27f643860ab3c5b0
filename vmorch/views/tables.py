"""The read models' tables as SQLAlchemy knows them. Made by the migrations; must not create anything itself."""

from typing import Literal

from sqlalchemy import Boolean, Column, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(schema="views")


Model = Literal["vms", "hosts", "images", "operations", "tokens", "drains"]


def _table(name: Model, *columns: Column[object]) -> Table:
    return Table(name, metadata, Column("id", Text, primary_key=True), *columns, Column("doc", Text, nullable=False))


TABLES: dict[Model, Table] = {
    "vms": _table(
        "vms", Column("name", Text), Column("host", Text), Column("state", Text), Column("labels", JSONB)
    ),
    "hosts": _table("hosts", Column("name", Text), Column("state", Text), Column("labels", JSONB)),
    "images": _table("images", Column("name", Text)),
    "operations": _table(
        "operations",
        Column("vm", Text),
        Column("vm_name", Text),
        Column("verb", Text),
        Column("state", Text),
        Column("actor", Text),
        Column("active", Boolean),
    ),
    "tokens": _table("tokens", Column("name", Text), Column("state", Text)),
    "drains": _table(
        "drains",
        Column("state", Text),
        Column("actor", Text),
        Column("started", Boolean),
        Column("active", Boolean),
    ),
}
