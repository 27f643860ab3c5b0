"""The one error of the lab that an operator is meant to read.

A refusal (not root, package missing, host is off) is a `LabError`; anything else that is raised is a fault of the lab.
"""


class LabError(Exception):
    """What was refused, and in `hint` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
