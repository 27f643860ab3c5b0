"""What a list may be narrowed by."""

from collections.abc import Mapping

from msgspec import Struct


class Filters(Struct, frozen=True, kw_only=True):
    """All that are given must hold. `name` is a glob; `labels` must all be there with these values."""

    name: str | None = None
    host: str | None = None
    state: str | None = None
    labels: Mapping[str, str] = {}
    vm: str | None = None
    verb: str | None = None
    actor: str | None = None
    active: bool | None = None
    started: bool | None = None
