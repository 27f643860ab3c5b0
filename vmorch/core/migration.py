"""Where a guest is after a migration, and whether one under way will end: judged from what was seen, never guessed.

Both hosts are looked at whatever the migration's own call said. A halted guest is nobody's to run on before its
other half is proven to be gone. Must not know orders, operations or events.
"""

from collections.abc import Mapping
from typing import Final, Literal

from msgspec.structs import replace

from vmorch.core.hostcommands import Observed, Passage, Sample
from vmorch.core.value import Value

Cell = Literal["absent", "off", "paused", "running"]
"""One end's domain as far as it matters for ownership."""
Verdict = Literal["moved", "stayed", "again", "unknown"]
"""`again`: what was seen will not last, or was not seen at both ends; `unknown`: it may last, and proves nothing."""

TABLE: Final[Mapping[tuple[Cell, Cell], tuple[Verdict, str]]] = {
    ("absent", "absent"): ("unknown", "neither host knows the domain"),
    ("absent", "off"): ("moved", "only the destination has the domain, and it is off"),
    ("absent", "paused"): ("moved", "only the destination has the domain, halted"),
    ("absent", "running"): ("moved", "the domain runs on the destination alone"),
    ("off", "absent"): ("stayed", "the guest ended on its source"),
    ("off", "off"): ("stayed", "the guest ended; the destination has a configuration only"),
    ("off", "paused"): ("unknown", "off on its source and halted on the destination, perhaps with half a memory"),
    ("off", "running"): ("moved", "the domain runs on the destination, the source has a configuration only"),
    ("paused", "absent"): ("stayed", "halted on its source, and nothing on the destination"),
    ("paused", "off"): ("stayed", "halted on its source, and only a configuration on the destination"),
    ("paused", "paused"): ("unknown", "halted on both hosts, and nobody can tell which one is whole"),
    ("paused", "running"): ("moved", "the domain runs on the destination; its other half is halted on the source"),
    ("running", "absent"): ("stayed", "the domain runs on its source alone"),
    ("running", "off"): ("stayed", "the domain runs on its source; the destination has a configuration only"),
    ("running", "paused"): ("stayed", "the domain runs on its source; the destination has an unfinished half"),
    ("running", "running"): ("unknown", "the domain runs on both hosts"),
}
"""Source's cell, destination's cell -> where the guest belongs, and why."""

PASSING = frozenset({("off", "paused"), ("paused", "paused"), ("absent", "absent")})
"""Cells that a host which has just lost its peer leaves by itself: worth another look before they count as unknown."""

UNFINISHED = frozenset({"postcopy", "postcopy failed"})
"""Why a source is halted while the destination still needs pages of it."""

HALTED = UNFINISHED | {"migration"}
"""Why a domain is halted whose other half may run elsewhere: to let this one run could make two of it."""


class Judgement(Value, frozen=True):
    """The verdict and its reason in words."""

    verdict: Verdict
    why: str


def cell(seen: Observed) -> Cell | None:
    """What one end shows; None if it cannot be told."""
    match seen.power:
        case "absent" | "off" | "paused" | "running":
            return seen.power
        case "crashed":
            return "off"
        case _:
            return None


def judge(source: Observed | None, destination: Observed | None, *, patient: bool) -> Judgement:
    """Where the guest belongs. None: that end was not seen. While `patient`, what may pass by itself is looked at
    again; after that it is `unknown`."""
    here = None if source is None else cell(source)
    there = None if destination is None else cell(destination)
    if source is None or destination is None or here is None or there is None:
        blind = [name for name, found in (("source", here), ("destination", there)) if found is None]
        return Judgement("again" if patient else "unknown", f"the {' and the '.join(blind)} cannot be seen")
    if source.moving:
        if not patient and (source.reason, there) == ("migration", "absent"):
            return Judgement("stayed", "halted in its switch-over, and nothing on the destination to go on to")
        return Judgement("again" if patient else "unknown", "the migration is still under way")
    if source.reason in UNFINISHED and there == "running":
        return Judgement("again" if patient else "unknown", "the destination needs memory that is still on the source")
    verdict, why = TABLE[here, there]
    if verdict == "unknown" and patient and (here, there) in PASSING:
        return Judgement("again", why)
    return Judgement(verdict, why)


class Pace(Value, frozen=True, kw_only=True):
    """A passage as a verdict. `converging` is None while nobody can tell; `left` is the estimate in seconds, None
    where there is none; `downtime` the expected pause, -1 if unknown."""

    passes: int
    remaining: int
    bandwidth: float
    dirty_rate: float
    converging: bool | None
    left: float | None
    downtime: float
    throttle: int
    postcopy: bool


def pace(sample: Sample) -> Pace:
    """What a sample says about the end. In the first pass nothing is known of what the guest writes."""
    rate, dirty = sample.bandwidth, max(sample.dirty_rate, 0.0)
    known = sample.remaining >= 0 and rate > 0
    converging: bool | None = None
    if sample.postcopy:
        # the guest writes at the destination already: nothing can grow again
        converging, dirty = True, 0.0
    elif known and sample.passes > 1:
        converging = dirty < rate
    left = sample.remaining / (rate - dirty) if known and rate > dirty and converging is not False else None
    return Pace(
        passes=sample.passes,
        remaining=sample.remaining,
        bandwidth=sample.bandwidth,
        dirty_rate=sample.dirty_rate,
        converging=converging,
        left=left,
        downtime=sample.downtime,
        throttle=sample.throttle,
        postcopy=sample.postcopy,
    )


class Track(Value, frozen=True, kw_only=True):
    """What must be remembered of earlier samples to tell a stall: the least that was ever left, the hardest throttle,
    and when either last improved, in seconds since the passage began.

    Single samples rise and fall with each pass, so only a new low counts as progress.
    """

    least: int = -1
    throttle: int = 0
    improved: float = 0.0


def follow(track: Track, sample: Sample) -> Track:
    """The track after one more sample."""
    lower = sample.remaining >= 0 and (track.least < 0 or sample.remaining < track.least)
    harder = sample.throttle > track.throttle
    if not lower and not harder:
        return track
    return replace(
        track,
        least=sample.remaining if lower else track.least,
        throttle=max(track.throttle, sample.throttle),
        improved=sample.elapsed,
    )


Steer = Literal["go-on", "postcopy", "abort"]


def steer(track: Track, sample: Sample, passage: Passage) -> tuple[Steer, str]:
    """What to do now, and why. A guest that was switched over can only go on: there is no way back for it."""
    if sample.postcopy:
        return "go-on", ""
    if sample.elapsed >= passage.within:
        return "abort", f"not over within {passage.within:g} s"
    still = sample.elapsed - track.improved
    if still < passage.stall:
        return "go-on", ""
    why = f"no progress for {still:.0f} s: {max(track.least, 0) >> 20} MiB left at best"
    return ("postcopy", why) if passage.on_stall == "postcopy" else ("abort", why)
