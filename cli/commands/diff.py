"""`vmorch diff`: what differs between two moments."""

import click

from cli.differences import show_differences
from cli.session import Session
from cli.verbs import PAIR, SectionOption, Verb


class _Moments(Verb):
    """A command whose arguments may be how long ago, such as -2h, which looks like a flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # nothing that begins with a space is taken for a flag
        typed = [f" {each}" if each[:1] == "-" and each[1:2].isdecimal() else each for each in args]
        return super().parse_args(ctx, typed)


@click.command(
    "diff",
    cls=_Moments,
    examples=(
        "vmorch diff -2h now vm/web-1",
        "vmorch diff @48000 @48204 host/hv-01",
        "vmorch diff 2026-11-20T14:00:00Z -l app=web",
        "vmorch diff -1d -o json",
    ),
    help="What differs between two moments, field by field, each with the last event that changed it, its actor and"
    " reason: of one thing (KIND/NAME), of the VMs with a label, or of everything. Exit 10: something differs.",
)
@click.argument("before", metavar="FROM")
@click.argument("after", metavar="[TO]", default="now", required=False)
@click.argument("subject", metavar="[KIND/NAME]", required=False)
@click.option(
    "-l", "--selector", type=PAIR, multiple=True, cls=SectionOption, section="Selection",
    help="Only VMs with this label at either moment (repeatable: all of them).",
)  # fmt: skip
@click.pass_obj
def diff(
    session: Session, /, before: str, after: str, subject: str | None, selector: tuple[tuple[str, str], ...]
) -> None:
    before, after = before.strip(), after.strip()
    if subject is None and "/" in after:
        after, subject = "now", after
    labels = [f"{key}={value}" for key, value in selector]
    show_differences(session, before, after, subject=subject, labels=labels)
