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


class ArchiveMissing(LogUnavailable):
    """The events lie in a file that this process cannot read. Whoever has the file can put it back."""

    code = "archive-missing"

    def __init__(self, file: str, directory: str | None, cause: str = "there is no such file") -> None:
        where = "and no directory of archives is named" if directory is None else f"of {directory}"
        LogError.__init__(self, f"the events lie in the archive {file} {where}: {cause}")
        self.cause = cause


class ArchiveDamaged(LogUnavailable):
    """The file with the events is not what was written; an intact copy has to be put in its place."""

    code = "archive-damaged"

    def __init__(self, file: str, first: int, last: int) -> None:
        cause = f"the events from {first} to {last} in the archive {file} are not what was written there"
        LogError.__init__(self, cause)
        self.cause = cause
