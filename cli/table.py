"""Aligned columns of plain text: no boxes, no trailing spaces, colour added after alignment.

Pure. Numbers align right, everything else left.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

Row = TypeVar("Row")
Paint = Callable[[str, str], str]


class Column(Struct, Generic[Row], frozen=True, kw_only=True):
    """A column: its header, what a row shows in it, and whether only `-o wide` has it.

    `style` names the colour of a row's cell, or "" for none.
    """

    header: str
    cell: Callable[[Row], str]
    wide: bool = False
    right: bool = False
    style: Callable[[Row], str] | None = None


def lines(
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    *,
    wide: bool = False,
    headers: bool = True,
    paint: Paint | None = None,
) -> list[str]:
    """The rows as text lines, the header first."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[column.cell(row) or "-" for row in rows] for column in shown]
    widths = [
        max(len(column.header) if headers else 0, max(map(len, texts), default=0))
        for column, texts in zip(shown, cells, strict=True)
    ]
    found: list[str] = []
    if headers:
        found.append(_join([(column.header, column.right) for column in shown], widths))
    for index, row in enumerate(rows):
        parts = []
        for column, texts, width in zip(shown, cells, widths, strict=True):
            text = texts[index]
            padded = text.rjust(width) if column.right else text.ljust(width)
            style = column.style(row) if paint and column.style else ""
            parts.append(padded.replace(text, paint(style, text), 1) if paint and style else padded)
        found.append("  ".join(parts).rstrip())
    return found


def _join(cells: list[tuple[str, bool]], widths: list[int]) -> str:
    padded = [
        text.rjust(width) if right else text.ljust(width)
        for (text, right), width in zip(cells, widths, strict=True)
    ]
    return "  ".join(padded).rstrip()


def pairs(facts: Sequence[tuple[str, str]], indent: str = "") -> list[str]:
    """Names and values in two columns."""
    width = max((len(name) for name, _ in facts), default=0)
    return [f"{indent}{name:<{width}}  {value}".rstrip() for name, value in facts]
