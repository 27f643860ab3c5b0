"""Back a VM up: the derived verb. Must not import what is needed only once the API was asked."""

from cli.derived import command_for
from cli.verb_data import load

_data = load("backup")
assert _data is not None
create = command_for(_data)
