"""The verbs on a VM as data, derived from the registry beforehand, so that no process of an operator imports it.

`verbs.json` is written by `docs/generate.py`; the tests fail when it is not what the registry says. Must not name
any verb.
"""

import os
from typing import Any, Literal

import msgspec
from msgspec import Struct

FILE = os.path.join(os.path.dirname(__file__), "verbs.json")

Kind = Literal["text", "integer", "number", "switch", "choice", "mib", "gib", "duration", "pairs", "json"]
"""How a field is typed on the command line."""


class Field(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A field of a command as the command line sees it."""

    name: str
    kind: Kind
    required: bool = False
    many: bool = False
    on: bool = False
    """A switch that is on unless it is told otherwise."""
    choices: tuple[str, ...] = ()
    help: str = ""
    limits: dict[str, Any] = {}
    """What the value must keep to, as JSON Schema; see `cli.limits`."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


class VerbData(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A verb. `confirms`: when it destroys something, always or only with the field `force`. `place` is where it is
    found if it stands in a group below `vm`, such as `snapshot create`."""

    verb: str
    place: str = ""
    summary: str
    help: str
    confirms: Literal["always", "force"] | None = None
    fields: tuple[Field, ...] = ()
    examples: tuple[str, ...] = ()


def summaries() -> dict[str, str]:
    """Verb -> what it does, in a few words; without those that stand in a group of their own."""
    found = (msgspec.json.decode(raw, type=VerbData) for raw in _verbs().values())
    return {data.verb: data.summary for data in found if not data.place}


def placed(path: str) -> str | None:
    """The verb that stands there, if there is one."""
    found = (msgspec.json.decode(raw, type=VerbData) for raw in _verbs().values())
    return next((data.verb for data in found if data.place == path), None)


def load(verb: str) -> VerbData | None:
    """The verb, or None if there is none of that name."""
    raw = _verbs().get(verb)
    return None if raw is None else msgspec.json.decode(raw, type=VerbData)


def _verbs() -> dict[str, msgspec.Raw]:
    with open(FILE, "rb") as file:
        return msgspec.json.decode(file.read(), type=dict[str, msgspec.Raw])
