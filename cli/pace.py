"""How a migration goes, in one line: a verdict about its end, never a single percentage. Pure."""

from cli.shapes import Pace
from cli.units import show_bytes, show_seconds

BAR = 20


def show_pace(pace: Pace) -> str:
    """`pass 4  [####....]  6.1Gi left at 1.1Gi/s; the guest writes 260Mi/s: converging, about 8s, pause about 90ms`."""
    if pace.remaining is None:
        return "begins"
    parts = [f"pass {pace.passes}", f"[{_bar(pace)}]", f"{show_bytes(pace.remaining)} left"]
    if pace.bandwidth:
        parts[-1] += f" at {show_bytes(pace.bandwidth)}/s"
    return "  ".join(parts) + f"; {_verdict(pace)}"


def show_copying(pace: Pace) -> str:
    """The same for disks that are copied: `[####....]  6.1Gi left at 1.1Gi/s, about 8s`."""
    if pace.remaining is None:
        return "begins"
    if not pace.remaining:
        return "copied; what was written is being read back"
    said = f"[{_bar(pace)}]  {show_bytes(pace.remaining)} left"
    if not pace.bandwidth:
        return said
    return f"{said} at {show_bytes(pace.bandwidth)}/s, about {show_seconds(pace.remaining / pace.bandwidth)}"


def _bar(pace: Pace) -> str:
    if not pace.total or pace.remaining is None:
        return "." * BAR
    done = round(BAR * (1 - min(1.0, pace.remaining / pace.total)))
    return "#" * done + "." * (BAR - done)


def _verdict(pace: Pace) -> str:
    ends = []
    if pace.left is not None:
        ends.append(f"about {show_seconds(pace.left)}")
    if pace.downtime is not None and not pace.postcopy:
        ends.append(f"pause about {pace.downtime * 1000:.0f}ms")
    if pace.throttle:
        ends.append(f"guest slowed by {pace.throttle}%")
    if pace.postcopy:
        return ", ".join(["switched over, the rest of the memory follows", *ends])
    if pace.converging is None:
        return ", ".join(["first pass", *ends])
    writes = f"the guest writes {show_bytes(pace.dirty_rate or 0)}/s"
    return f"{writes}: " + ", ".join(["converging" if pace.converging else "NOT converging", *ends])
