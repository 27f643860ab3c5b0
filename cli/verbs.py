"""The shape of every command: shared flags, sections in its help, examples; groups that load a verb when it is used.

Must not import any command: tables of names do, when somebody asks for one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

import click
from msgspec import Struct

from cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])

OUTPUTS = ("table", "wide", "name", "csv", "json", "jsonl", "yaml")


class SectionOption(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Remember a shared flag in the session; the innermost place where it was typed wins."""
    if value not in (None, False) and param.name:
        setattr(ctx.ensure_object(Session).flags, param.name, value)


def shared_options(*, hidden: bool) -> list[click.Option]:
    """The flags that every command takes, in any place of the line."""
    made: list[click.Option] = []

    def option(*names: str, help: str, visible: bool = False, **more: Any) -> None:
        made.append(
            SectionOption(
                names,
                help=help,
                callback=_keep,
                expose_value=False,
                hidden=hidden and not visible,
                section="Output",
                **more,
            )
        )

    option("-C", "--context", metavar="NAME", help="The cluster to talk to, from the context file.")
    option("--api", metavar="URL", help="The API's address: http(s)://HOST:PORT or unix:/PATH.")
    option("-o", "--output", type=click.Choice(OUTPUTS), help="How to show the answer.", visible=True)
    option("--query", metavar="EXPR", help="Cut the JSON answer with a JMESPath expression.")
    option("--time", type=click.Choice(("rel", "local", "utc")), help="How to show moments.")
    option("--color", type=click.Choice(("auto", "always", "never")), help="Whether to colour.")
    option("-q", "--quiet", is_flag=True, help="No progress and no remarks.")
    option("--no-input", is_flag=True, help="Never ask; fail instead.")
    option("--debug", is_flag=True, help="Show requests, and the trace of a fault.")
    return made


def _moments(name: str, help: str, **more: Any) -> Callable[[F], F]:
    """A flag that chooses moments, for whatever the command reads."""
    return click.option(
        name, cls=SectionOption, section="Selection", callback=_keep, expose_value=False, help=help, **more
    )


def past_option(function: F) -> F:
    """The flag of commands that answer for any moment."""
    return _moments("--as-of", "As it was then: -2h, @POSITION or a time.", metavar="MOMENT")(function)


def diff_option(function: F) -> F:
    """The flag of commands that compare two moments."""
    said = "What differs between two moments, such as -2h now; exit 10 if anything does."
    return _moments("--diff", said, nargs=2, metavar="FROM TO")(function)


def compares(kind: str, parameter: str) -> Callable[[F], F]:
    """A command that describes one thing, named by an argument, compares it at two moments instead with --diff."""

    def add(function: F) -> F:
        @wraps(function)
        def either(session: Session, /, **given: Any) -> None:
            if session.flags.diff is None:
                function(session, **given)
                return
            from cli.differences import show_differences

            show_differences(session, *session.flags.diff, subject=f"{kind}/{given[parameter]}")

        return diff_option(either)  # type: ignore[return-value]  # it takes what the function takes

    return add


def change_options(*, confirms: bool = False, waits: bool = True, plans: bool = True) -> Callable[[F], F]:
    """The flags of commands that change something."""

    def add(function: F) -> F:
        options: list[Callable[[F], F]] = [
            click.option(
                "-m",
                "--reason",
                cls=SectionOption,
                section="Change",
                callback=_keep,
                expose_value=False,
                metavar="TEXT",
                help="Why; recorded with the change.",
            ),
            click.option(
                "--request-id",
                cls=SectionOption,
                section="Change",
                callback=_keep,
                expose_value=False,
                metavar="UUID",
                help="Repeat an earlier request instead of making a new one.",
            ),
        ]
        if plans:
            options.append(
                click.option(
                    "--dry-run",
                    is_flag=True,
                    cls=SectionOption,
                    section="Change",
                    help="Show what would be done, do nothing (exit 10).",
                )
            )
            options.append(
                click.option(
                    "--as-of",
                    cls=SectionOption,
                    section="Change",
                    callback=_keep,
                    expose_value=False,
                    metavar="MOMENT",
                    help="With --dry-run: what would have been done then.",
                )
            )
        if waits:
            options += [
                click.option(
                    "-d",
                    "--detach",
                    is_flag=True,
                    cls=SectionOption,
                    section="Change",
                    help="Do not wait for the end.",
                ),
                click.option(
                    "--timeout",
                    type=DURATION,
                    cls=SectionOption,
                    section="Change",
                    help="Stop waiting after this time (exit 8).",
                ),
            ]
        if confirms:
            options.append(
                click.option(
                    "-y",
                    "--yes",
                    is_flag=True,
                    cls=SectionOption,
                    section="Change",
                    help="Do not ask for confirmation.",
                )
            )
        for option in reversed(options):
            function = option(function)
        return function

    return add


class Verb(click.Command):
    """A command with examples, whose help shows its options under headings."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), shared: bool = True, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {})
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        if shared:
            self.params += shared_options(hidden=True)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                section = "Output" if "--help" in param.opts else getattr(param, "section", "Options")
                sections.setdefault(section, []).append(record)
        last = [name for name in ("Change", "Output") if name in sections]
        for name in [*(each for each in sections if each not in last), *last]:
            with formatter.section(name):
                formatter.write_dl(sections[name])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)
        formatter.write_paragraph()
        formatter.write_text("Flags of every command (--context, --query, --quiet ...): vmorch --help")


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """A section of lines to type, never wrapped."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def verb(name: str, *, examples: Sequence[str], **kwargs: Any) -> Callable[[Callable[..., Any]], Verb]:
    """Make a function a command of this name."""
    return click.command(name, cls=Verb, examples=examples, **kwargs)


class Entry(Struct, frozen=True):
    """A command that is imported when it is used: `target` is `module:attribute`."""

    target: str
    summary: str
    section: str = "Commands"
    hidden: bool = False


class Group(click.Group):
    """Commands by name, loaded one at a time. A name it does not know is answered with the one that was meant."""

    def __init__(
        self,
        name: str,
        entries: Mapping[str, Entry],
        *,
        help: str,
        foreign: Mapping[str, str] | None = None,
        examples: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(name, help=help, **kwargs)
        self.entries = dict(entries)
        self.foreign = dict(foreign or {})
        self.examples = tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in self.entries.items() if not entry.hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def summaries(self, ctx: click.Context) -> list[tuple[str, str, str]]:
        """Section, name and summary of each command."""
        return [
            (entry.section, name, entry.summary) for name, entry in self.entries.items() if not entry.hidden
        ]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        command = self.get_command(ctx, name)
        if command is not None:
            return name, command, args[1:]
        raise click.UsageError(self.unknown(ctx, name), ctx)

    def unknown(self, ctx: click.Context, name: str) -> str:
        """What to say about a verb that is not ours."""
        ours = self.foreign.get(name)
        if ours is not None:
            return f"vmorch has no {name!r}; type: {ours}"
        from difflib import get_close_matches

        near = get_close_matches(name, self.list_commands(ctx), n=2)
        meant = f"; did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
        return f"there is no {ctx.command_path} {name!r}{meant}"

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for section, name, summary in self.summaries(ctx):
            sections.setdefault(section, []).append((name, summary))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = [param.get_help_record(ctx) for param in self.get_params(ctx)]
        self.format_commands(ctx, formatter)
        if ctx.parent is None:
            with formatter.section("Flags of every command"):
                formatter.write_dl([record for record in records if record is not None])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)


class _Parsed(click.ParamType[Any]):
    """A value in the operators' notation; what the parser refuses is a usage error with its hint."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name.upper()


def parsed(name: str, parse: Callable[[str], Any]) -> click.ParamType[Any]:
    """A parameter type from a parser that raises ValueError."""
    return _Parsed(name, parse)


def _duration(text: str) -> float:
    from cli.units import parse_duration

    return parse_duration(text)


def _mib(text: str) -> int:
    from cli.units import MIB, parse_size_in

    return parse_size_in(text, MIB, "Mi")


def _gib(text: str) -> int:
    from cli.units import GIB, parse_size_in

    return parse_size_in(text, GIB, "Gi")


def _pair(text: str) -> tuple[str, str]:
    from cli.units import parse_pair

    return parse_pair(text)


DURATION = parsed("duration", _duration)
SIZE_MIB = parsed("size", _mib)
SIZE_GIB = parsed("size", _gib)
PAIR = parsed("key=value", _pair)
