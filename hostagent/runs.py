"""Remember of each VM what libvirt forgets: whether a start was under way, and which addresses its guest named.

libvirt shows the same for a guest that was never started and for one that started and went off again. So a start
leaves a record before and after, and a crash in the middle can be judged by it. Must not call libvirt.

Records need not survive a power cut: nothing of a start does.
"""

import threading
from typing import Literal

import msgspec

from hostagent.layout import RUN_RECORD, SERIAL_LOG, Layout, make_directory, opened, regular_file, write_file
from vmorch.core.ids import VmId


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`phase` of the latest start: begun, or known to have succeeded; empty when its answer was given long ago.

    `before` is why the domain was off then, `serial_bytes` how much its serial log held. `arrival`: a guest of
    another host is expected here, or came halted and has not run here since. `held`: we halted it for a moment, and it
    goes on when that is over. `changing` is the layer (`vda.3`) that it was about to leave for the one below. `parked`:
    what it shall do again when it is brought back from its memory, where it is for a moment.
    """

    phase: Literal["", "starting", "started"] = ""
    before: str = ""
    serial_bytes: int = 0
    addresses: tuple[str, ...] = ()
    arrival: Literal["", "expected", "halted"] = ""
    held: bool = False
    changing: str = ""
    parked: Literal["", "running", "halted"] = ""


class Runs:
    """The records of all VMs of a host. Thread-safe; one VM's record has one writer at a time, its lane."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[VmId, RunRecord] = {}
        self._ended: dict[VmId, str] = {}
        self._lock = threading.Lock()

    def of(self, vm: VmId) -> RunRecord:
        """The VM's record; an unreadable one counts as none."""
        with self._lock:
            known = self._known.get(vm)
        if known is None:
            known = self._read(vm)
            with self._lock:
                known = self._known.setdefault(vm, known)
        return known

    def starting(self, vm: VmId, before: str) -> None:
        """A start is about to be tried."""
        changing = self.of(vm).changing
        record = RunRecord(
            phase="starting", before=before, serial_bytes=self.serial_bytes(vm), changing=changing
        )
        self._write(vm, record)

    def started(self, vm: VmId) -> None:
        """The start succeeded, whatever the guest does next."""
        self._write(vm, msgspec.structs.replace(self.of(vm), phase="started"))

    def settle(self, vm: VmId) -> None:
        """The answer to the latest start was given: nobody will ask for it again."""
        record = self.of(vm)
        if record.phase:
            self._write(vm, msgspec.structs.replace(record, phase=""))

    def found_at(self, vm: VmId, addresses: tuple[str, ...]) -> None:
        """The running guest has these addresses."""
        record = self.of(vm)
        if record.addresses != addresses:
            self._write(vm, msgspec.structs.replace(record, addresses=addresses))

    def expected(self, vm: VmId) -> None:
        """The guest will come here from another host."""
        self._write(vm, msgspec.structs.replace(self.of(vm), arrival="expected"))

    def came(self, vm: VmId, *, halted: bool) -> None:
        """If the guest was expected, it is here now."""
        record = self.of(vm)
        if record.arrival == "expected":
            self._write(vm, msgspec.structs.replace(record, arrival="halted" if halted else ""))

    def ran(self, vm: VmId) -> None:
        """The guest was seen running here."""
        record = self.of(vm)
        if record.arrival:
            self._write(vm, msgspec.structs.replace(record, arrival=""))

    def hold(self, vm: VmId, held: bool) -> None:
        """The guest is about to be halted for a moment, or is not any more."""
        record = self.of(vm)
        if record.held != held:
            self._write(vm, msgspec.structs.replace(record, held=held))

    def change(self, vm: VmId, layer: str) -> None:
        """The guest is about to leave this layer for the one below; empty: that is over. Survives a power cut."""
        record = self.of(vm)
        if record.changing != layer:
            self._write(vm, msgspec.structs.replace(record, changing=layer), durable=True)

    def park(self, vm: VmId, parked: Literal["", "running", "halted"]) -> None:
        """The guest is about to be in its kept memory alone, or is not any more. Survives a power cut."""
        self._write(vm, msgspec.structs.replace(self.of(vm), parked=parked), durable=True)

    def ended(self, vm: VmId, reason: str) -> str:
        """Why the domain is off: what libvirt says now or, when its daemon has forgotten, what it said before."""
        with self._lock:
            if reason:
                self._ended[vm] = reason
            return self._ended.get(vm, "")

    def active(self, vm: VmId) -> None:
        """The domain runs, so that its last end is of no more interest."""
        with self._lock:
            self._ended.pop(vm, None)

    def forget(self, vm: VmId) -> None:
        """The VM is gone from this host, its record's file too."""
        with self._lock:
            self._known.pop(vm, None)
            self._ended.pop(vm, None)

    def serial_bytes(self, vm: VmId) -> int:
        """How much the guest has ever written to its serial log."""
        with opened(self._layout.vm("local", vm)) as directory:
            found = None if directory is None else regular_file(directory, SERIAL_LOG)
        return 0 if found is None else found.st_size

    def _read(self, vm: VmId) -> RunRecord:
        try:
            return msgspec.json.decode((self._layout.vm("local", vm) / RUN_RECORD).read_bytes(), type=RunRecord)
        except (FileNotFoundError, msgspec.MsgspecError):
            return RunRecord()

    def _write(self, vm: VmId, record: RunRecord, *, durable: bool = False) -> None:
        with self._lock:
            self._known[vm] = record
        directory = self._layout.vm("local", vm)
        make_directory(directory)
        write_file(directory, RUN_RECORD, msgspec.json.encode(record), durable=durable)
