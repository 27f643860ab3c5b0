"""What was seen of a VM of which nobody can tell where it is, for whoever has to say it."""

from cli.shapes import Frozen


def evidence(frozen: Frozen) -> list[tuple[str, str]]:
    """Names and texts: why it is unknown, and what each end showed last."""
    ends = (("Source", frozen.source), ("Destination", frozen.destination))
    return [
        ("Why", frozen.why),
        *((name, f"{end.host}: {end.power}" + (f" ({end.reason})" if end.reason else "")) for name, end in ends),
    ]
