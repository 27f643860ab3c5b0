"""Plans, ledgers and progress of drains as text. Must not fetch anything."""

from collections import Counter
from collections.abc import Sequence

from cli.drain_shapes import Drain, DrainRow, DrainVm
from cli.table import Column, Paint, lines
from cli.units import show_mib, show_seconds

STYLES = {
    "moved": "good",
    "stopped": "good",
    "started": "good",
    "done": "good",
    "moving": "dim",
    "running": "dim",
    "failed": "bad",
    "blocked": "bad",
    "incomplete": "bad",
    "aborted": "bad",
    "left": "warn",
    "gone": "dim",
    "cancelled": "warn",
    "deadline": "warn",
    "ending": "warn",
    "discarded": "dim",
}
MARKS = {"moved": "ok", "stopped": "ok", "started": "ok", "gone": "ok", "failed": "!!", "blocked": "!!", "left": "--"}
_STAYED = ("failed", "blocked", "left", "gone", "stopped", "started")
_ORDER = ("live", "offline", "restart", "stop", "start")


def hosts_of(drain: DrainRow) -> str:
    """The hosts that it is about, or their number."""
    return ", ".join(drain.hosts) if len(drain.hosts) <= 4 else f"{len(drain.hosts)} hosts"


def plan_lines(drain: Drain, paint: Paint) -> list[str]:
    """A plan for reading: the moves wave by wave, what is blocked, how the cluster stands afterwards."""
    ways = Counter(line.how for line in drain.lines if line.how and line.state != "blocked")
    blocked = sum(line.state == "blocked" for line in drain.lines)
    counts = [f"{ways[how]} {how}" for how in _ORDER if ways[how]] + ([f"{blocked} blocked"] if blocked else [])
    number = "1 VM" if len(drain.lines) == 1 else f"{len(drain.lines)} VMs"
    what = "for" if drain.purpose == "drain" else "back to"
    found = [
        f"Plan {drain.id} {what} {hosts_of(drain)} at {drain.position}: "
        + ", ".join([number, *counts, *([f"about {show_seconds(drain.estimate)}"] if drain.estimate else [])])
    ]
    if drain.lines:
        several = len({line.source for line in drain.lines}) > 1
        found += lines(_plan_columns(several), drain.lines, paint=paint)
    if drain.kept:
        found.append(f"{drain.kept} moves are those of the plan before")
    return [*found, *_afterwards(drain)]


def _plan_columns(several: bool) -> list[Column[DrainVm]]:
    source = [Column[DrainVm](header="FROM", cell=lambda line: line.source)] if several else []
    return [
        Column(header="WAVE", cell=lambda line: str(line.wave or "-")),
        Column(header="VM", cell=lambda line: line.name),
        *source,
        Column(header="TO", cell=lambda line: line.destination or "-"),
        Column(
            header="HOW",
            cell=lambda line: "BLOCKED" if line.state == "blocked" else line.how or "-",
            style=lambda line: "bad" if line.state == "blocked" else "",
        ),
        Column(header="MEM", cell=lambda line: show_mib(line.memory), right=True),
        Column(header="EST", cell=lambda line: show_seconds(line.estimate) if line.estimate else "-", right=True),
        Column(header="WHY", cell=lambda line: line.reasons if line.state == "blocked" else line.why),
    ]


def _afterwards(drain: Drain) -> list[str]:
    found = []
    fullest = sorted(drain.after, key=lambda each: (-each.memory, each.host))
    if fullest:
        named = ", ".join(f"{each.host} memory {each.memory:.0%}" for each in fullest[:4])
        more = f" and {len(fullest) - 4} more" if len(fullest) > 4 else ""
        found.append(f"After: {named}{more}")
    found.append(f"One more host loss survivable: {'yes' if drain.survivable else 'no'}")
    for loss in drain.losses:
        named = ", ".join(loss.vms[:4]) + (f" and {len(loss.vms) - 4} more" if len(loss.vms) > 4 else "")
        found.append(f"  without {loss.host}: no place for {named}")
    if drain.on_local_disks:
        found.append(f"  {drain.on_local_disks} VMs on local disks would lose them with their host")
    return found


def touched_lines(drain: Drain) -> list[str]:
    """The events that make a plan stale."""
    if not drain.touched:
        return []
    found = [f"Stale: {len(drain.touched)} later events touch what it decided"]
    columns: list[Column[tuple[str, ...]]] = [
        Column(header="", cell=lambda row: row[0], right=True),
        *(Column(header="", cell=lambda row, at=at: row[at]) for at in range(1, 5)),  # type: ignore[misc]
    ]
    rows = [
        (str(each.position), each.kind, f"{each.subject} {each.detail}".strip(), each.actor, _quoted(each.reason))
        for each in drain.touched[:20]
    ]
    return [*found, *(f"  {line}" for line in lines(columns, rows, headers=False))]


def ledger_lines(drain: Drain, paint: Paint) -> list[str]:
    """Each VM and what became of it, or what it is waiting for."""
    return lines(_LEDGER, drain.lines, paint=paint)


_LEDGER: list[Column[DrainVm]] = [
    Column(header="VM", cell=lambda line: line.name),
    Column(header="STATE", cell=lambda line: line.state, style=lambda line: STYLES.get(line.state, "")),
    Column(header="FROM", cell=lambda line: line.source),
    Column(
        header="TO",
        cell=lambda line: (line.host if line.state in _STAYED else line.destination) or "-",
    ),
    Column(header="HOW", cell=lambda line: line.how or "-"),
    Column(header="WAVE", cell=lambda line: str(line.wave or "-"), right=True),
    Column(
        header="WHAT",
        cell=lambda line: line.doing or (f"waits for {line.waits_for}" if line.waits_for else line.reasons) or "-",
    ),
]


def ended_line(line: DrainVm) -> str:
    """What became of a VM, in words."""
    match line.state:
        case "moved":
            return f"moved to {line.host or line.destination}"
        case "failed" if line.host and line.host != line.source:
            return f"moved to {line.host}, but failed: {line.reasons}"
        case "stopped" | "started":
            return f"{line.state} on {line.host or line.source}" + (f" ({line.reasons})" if line.reasons else "")
    return f"{line.state}: {line.reasons}" if line.reasons else line.state


def sum_up(drain: Drain) -> str:
    """How a drain ended, in one line."""
    counts = Counter(line.state for line in drain.lines)
    said = [f"{counts[state]} {state}" for state in MARKS if counts[state]]
    took = ""
    if drain.started_at is not None and drain.ended_at is not None:
        took = f" in {show_seconds((drain.ended_at - drain.started_at).total_seconds())}"
    what = "drain of" if drain.purpose == "drain" else "return to"
    verdict = {
        "done": "is done",
        "incomplete": "is incomplete",
        "cancelled": "was cancelled",
        "deadline": "ended at its deadline",
        "aborted": "was aborted",
    }.get(drain.state, f"is {drain.state}")
    return f"{what} {hosts_of(drain)} {verdict}{took}: {', '.join(said) or 'there was nothing to move'}"


def under_way(lines_: Sequence[DrainVm]) -> str:
    """What goes on now, for the moving line."""
    moving = [line for line in lines_ if line.state == "moving"]
    over = sum(line.over for line in lines_)
    named = ", ".join(f"{line.name} {line.doing}".strip() for line in moving[:3])
    more = f" and {len(moving) - 3} more" if len(moving) > 3 else ""
    wave = min((line.wave for line in lines_ if not line.over and line.wave), default=0)
    text = f"  ..  {over} of {len(lines_)}" + (f"  wave {wave}" if wave else "")
    if named:
        return f"{text}  {named}{more}"
    waits = next((line for line in lines_ if line.waits_for), None)
    return f"{text}  {waits.name} waits for {waits.waits_for}" if waits else text


def _quoted(text: str) -> str:
    return f'"{text}"' if text else ""
