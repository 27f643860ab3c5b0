"""Where the API is and who asks: contexts, tokens, the environment and the flags, in one order of precedence.

A flag wins over VMORCH_* which wins over the context which wins over the default. Tokens live in a file of their
own, so that the context file can be shown and shared. Both files are readable by their owner only.
"""

import os
from typing import TypeVar

import msgspec
from msgspec import Struct

from cli.problems import Problem

T = TypeVar("T")

DEFAULT_API = "http://127.0.0.1:8650"


class Context(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A cluster to talk to. `protected` makes a reason obligatory for every change."""

    api: str
    protected: bool = False
    output: str | None = None


class ContextFile(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Everything in config.toml."""

    current: str | None = None
    contexts: dict[str, Context] = {}


def config_dir() -> str:
    """Where the files are: $XDG_CONFIG_HOME/vmorch or ~/.config/vmorch."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "vmorch")


def load_contexts() -> ContextFile:
    """The context file; an empty one if there is none. Raises Problem `bad-request` if it cannot be read."""
    return _load("config.toml", ContextFile) or ContextFile()


def load_tokens() -> dict[str, str]:
    """Context name -> token."""
    return _load("tokens.toml", dict[str, str]) or {}


def save_contexts(file: ContextFile) -> str:
    """Write the context file, replacing it in one step. Returns its path."""
    lines = [] if file.current is None else [f"current = {_quoted(file.current)}", ""]
    for name, context in sorted(file.contexts.items()):
        lines.append(f"[contexts.{_quoted(name)}]")
        lines.append(f"api = {_quoted(context.api)}")
        if context.protected:
            lines.append("protected = true")
        if context.output is not None:
            lines.append(f"output = {_quoted(context.output)}")
        lines.append("")
    return _save("config.toml", "\n".join(lines))


def save_token(context: str, token: str | None) -> str:
    """Keep the token of a context, or forget it. Returns the file's path."""
    tokens = {name: value for name, value in load_tokens().items() if name != context}
    if token is not None:
        tokens[context] = token
    lines = [f"{_quoted(name)} = {_quoted(value)}" for name, value in sorted(tokens.items())]
    return _save("tokens.toml", "\n".join([*lines, ""]))


class Settings(Struct, frozen=True, kw_only=True):
    """What is in force for one run. `context` is the name in use, if any context is."""

    context: str | None
    api: str
    token: str | None
    output: str
    reason: str
    protected: bool


def resolve(
    *,
    context: str | None = None,
    api: str | None = None,
    output: str | None = None,
    reason: str | None = None,
) -> Settings:
    """The settings in force, given the flags that were typed. Raises Problem if a named context does not exist."""
    env = os.environ
    file = load_contexts()
    name = context or env.get("VMORCH_CONTEXT") or file.current
    chosen = file.contexts.get(name) if name else None
    if name and chosen is None:
        known = ", ".join(sorted(file.contexts)) or "none yet"
        raise Problem(
            "bad-request",
            f"there is no context {name!r} (known: {known})",
            hint=f"vmorch context add {name} --api URL",
        )
    address = api or env.get("VMORCH_API") or (chosen.api if chosen else DEFAULT_API)
    # a stored token belongs to its context's server: an address given by hand must not receive it
    stored = load_tokens().get(name) if name and chosen and address == chosen.api else None
    return Settings(
        context=name,
        api=address,
        token=env.get("VMORCH_TOKEN") or stored,
        output=output or env.get("VMORCH_OUTPUT") or (chosen.output if chosen else None) or "table",
        reason=env.get("VMORCH_REASON", "") if reason is None else reason,
        protected=chosen is not None and chosen.protected,
    )


def _load(name: str, shape: type[T]) -> T | None:
    path = os.path.join(config_dir(), name)
    try:
        with open(path) as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem("bad-request", f"{path} cannot be read: {error}") from error
    if not text.strip():
        return None
    import tomllib

    try:
        return msgspec.convert(tomllib.loads(text), shape)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Problem("bad-request", f"{path}: {error}") from error


def _save(name: str, text: str) -> str:
    import tempfile

    directory = config_dir()
    path = os.path.join(directory, name)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    # mkstemp makes it 0600 from its first byte on
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name}.")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    return path


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return msgspec.json.encode(text).decode()
