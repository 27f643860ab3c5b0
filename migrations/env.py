"""Run the migrations on the connection that `vmorch.log.schema` hands over.

There is no alembic.ini: the schema is upgraded by the program, so that a wheel is all an operator installs.
"""

from alembic import context
from sqlalchemy import Connection

connection = context.config.attributes["connection"]
assert isinstance(connection, Connection)
context.configure(connection=connection, version_table_schema="vmorch", transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
