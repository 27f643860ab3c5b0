"""What can go wrong with the log, each with a stable code. Must not know how the log is stored."""

from vmorch.core.ids import Stream


class LogError(Exception):
    """Any failure of the log."""

    code = "log-error"


class VersionConflict(LogError):
    """Nothing was written: `stream` is at `actual`, the append was decided at `expected`."""

    code = "log-version-conflict"

    def __init__(self, stream: Stream, expected: int, actual: int) -> None:
        super().__init__(f"{stream} is at version {actual}, not {expected}")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class NameTaken(LogError):
    """Nothing was written: within `scope`, `holder` has `name`."""

    code = "log-name-taken"

    def __init__(self, scope: str, name: str, holder: Stream) -> None:
        super().__init__(f"{scope} name {name} is held by {holder}")
        self.scope = scope
        self.name = name
        self.holder = holder


class InvalidAppend(LogError, ValueError):
    """Nothing was written, and trying again cannot help: the append itself is malformed."""

    code = "log-invalid-append"


class LogFull(LogError):
    """Nothing was written: no partition was made ahead for the next positions (`ensure_partitions`)."""

    code = "log-no-partition"


class LogUnavailable(LogError):
    """The log could not answer. An append MAY OR MAY NOT have been written.

    Repeat it with the same request id or the same expected versions: either makes the repetition harmless.
    """

    code = "log-unavailable"

    def __init__(self, cause: str) -> None:
        super().__init__(f"the event log is unavailable: {cause}")
        self.cause = cause
