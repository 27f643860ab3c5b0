"""Write what follows from the registry: the event catalogue, the list of codes, the CLI's verbs on VMs.

Run as `python docs/generate.py`; the tests fail when one of them is not what this writes.
"""

import inspect
import json
from pathlib import Path

import msgspec

import vmorch.core.fleet  # noqa: F401  registers every message
from cli.registry import verbs_json
from vmorch.core.codes import CODES
from vmorch.core.messages import COMMANDS, EVENTS, HOST_COMMANDS, Message
from vmorch.wire.asyncapi import document

HERE = Path(__file__).parent


def first_paragraph(made: type[object]) -> str:
    """The promise of a docstring, on one line."""
    return " ".join((inspect.getdoc(made) or "").split("\n\n")[0].split())


def type_name(annotation: object) -> str:
    """A field's type as a reader of JSON sees it."""
    info = msgspec.json.schema_components([annotation], ref_template="{name}")[0][0]
    return _described(info)


def _described(schema: dict[str, object]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"])
    if "anyOf" in schema:
        parts = schema["anyOf"]
        assert isinstance(parts, list)
        return " or ".join(_described(part) for part in parts)
    if "enum" in schema:
        values = schema["enum"]
        assert isinstance(values, list)
        return " or ".join(f"`{value}`" for value in values)
    kind = str(schema.get("type", "any"))
    items = schema.get("items")
    if kind == "array" and isinstance(items, dict):
        return f"list of {_described(items)}"
    if schema.get("format"):
        return str(schema["format"])
    return kind


def table(made: type[Message]) -> list[str]:
    """The fields of a message."""
    fields = msgspec.structs.fields(made)
    if not fields:
        return ["No fields.", ""]
    lines = ["| field | type | |", "|---|---|---|"]
    for field in fields:
        needed = "" if field.required else "optional"
        lines.append(f"| `{field.name}` | {type_name(field.type)} | {needed} |")
    return [*lines, ""]


def catalogue() -> str:
    """Every message, by family."""
    lines = [
        "# Events and commands",
        "",
        "Written by `docs/generate.py` from the registry; do not edit.",
        "",
        "Every event lies in the log with `position`, `stream`, `version`, `kind`, `schema`, its fields as `data`, and",
        "`meta`: `actor`, `reason`, `request`, `operation`, `causation`, `correlation`, `session`, `traceparent`,",
        "`occurred_at`. Kinds are for ever; a changed shape gets a higher schema number.",
        "",
    ]
    families = (("Events", EVENTS), ("Commands", COMMANDS), ("Host commands", HOST_COMMANDS))
    for title, messages in families:
        lines += [f"## {title}", ""]
        for kind in sorted(messages):
            made = messages[kind]  # type: ignore[index]
            lines += [f"### `{kind}` (schema {made.schema})", "", first_paragraph(made), "", *table(made)]
    return "\n".join(lines).rstrip() + "\n"


def codes() -> str:
    """Every code with its exit code."""
    lines = [
        "# Codes",
        "",
        "Written by `docs/generate.py`; do not edit. `vmorch explain CODE` prints the same.",
        "",
        "| code | exit | HTTP | what it means |",
        "|---|---|---|---|",
    ]
    for name in sorted(CODES):
        code = CODES[name]
        lines.append(f"| `{name}` | {code.exit} | {code.status} | **{code.title}.** {code.explanation} |")
    return "\n".join(lines) + "\n"


def asyncapi() -> str:
    """What goes out on the bus."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


PAGES = {"events.md": catalogue, "codes.md": codes, "asyncapi.json": asyncapi, "../cli/verbs.json": verbs_json}


def main() -> None:
    for name, write in PAGES.items():
        (HERE / name).write_text(write())


if __name__ == "__main__":
    main()
