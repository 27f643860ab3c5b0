"""Run the host's own scripts, each run once whatever happens, and remember how it ended.

A run that nobody saw end is never begun again: what it had done is not known, and the operator decides. Must not know
what the scripts are for.
"""

import os
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Literal

import msgspec

from hostagent.hypervisor import Scope
from hostagent.layout import make_directory, write_file
from vmorch.core.errors import Rejected

SECONDS = 600.0
"""How long a script may take, if its order has no shorter limit."""
TAIL_BYTES = 2000
_LOOK_EVERY = 0.1
_MARGIN = 1.0
"""Seconds kept back from the order's own deadline, so that its answer tells what the script said."""
_END_SECONDS = 5.0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The latest run of a script. `said` is the end of what it printed."""

    run: str
    phase: Literal["begun", "ended"]
    status: int = 0
    said: str = ""


class Hooks:
    """The scripts in `scripts`, named after what they are run for, and the records of their runs in `records`."""

    def __init__(self, scripts: Path, records: Path) -> None:
        self._scripts = scripts
        self._records = records

    def has_run(self, name: str, run: str) -> bool:
        """Whether that run has ended well. Raises Rejected `hook-failed` if it has not, or if nobody knows."""
        record = self._record(name)
        if record is None or record.run != run:
            return False
        if record.phase == "begun":
            raise Rejected("hook-failed", f"the agent stopped while {name} ran; nobody saw how it ended")
        if record.status != 0:
            raise _failed(name, record)
        return True

    def run(self, name: str, run: str, scope: Scope) -> None:
        """Run the script, if there is one. Raises Rejected `hook-failed`, Withdrawn, Expired."""
        script = self._scripts / name
        if not self._exists(script):
            self._remember(name, Record(run=run, phase="ended"))
            return
        scope.check()
        self._remember(name, Record(run=run, phase="begun"))
        with tempfile.TemporaryFile() as output:
            try:
                status = _carry_out(script, run, output, scope)
            except BaseException:
                self._remember(name, Record(run=run, phase="ended", status=-signal.SIGKILL, said=_tail(output)))
                raise
            record = Record(run=run, phase="ended", status=status, said=_tail(output))
        self._remember(name, record)
        if status != 0:
            raise _failed(name, record)

    def _exists(self, script: Path) -> bool:
        try:
            found = script.stat()
        except FileNotFoundError:
            return False
        # it will run as we do, so nobody else may have a say in it
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            raise Rejected("hook-failed", f"{script} is not a file that only its owner, root, can change")
        if not os.access(script, os.X_OK):
            raise Rejected("hook-failed", f"{script} is not executable")
        return True

    def _record(self, name: str) -> Record | None:
        try:
            return msgspec.json.decode((self._records / f"{name}.json").read_bytes(), type=Record)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _remember(self, name: str, record: Record) -> None:
        make_directory(self._records)
        write_file(self._records, f"{name}.json", msgspec.json.encode(record))


def _carry_out(script: Path, run: str, output: IO[bytes], scope: Scope) -> int:
    """The script's exit status."""
    limit = min(SECONDS, scope.remaining() - _MARGIN)
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "VMORCH_HOOK": script.name, "VMORCH_RUN": run}
    process = subprocess.Popen(
        [str(script)],
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        cwd="/", env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + limit
        while process.poll() is None and time.monotonic() < until:
            scope.pause(_LOOK_EVERY)
    finally:
        if process.poll() is None:
            # with everything that it started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_END_SECONDS)
    return process.returncode


def _failed(name: str, record: Record) -> Rejected:
    how = f"ended with {record.status}" if record.status > 0 else f"was ended by signal {-record.status}"
    return Rejected("hook-failed", f"{name} {how}" + (f": {record.said}" if record.said else ""))


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - TAIL_BYTES))
    return output.read().decode(errors="replace").strip()
