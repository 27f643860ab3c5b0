"""What is erased is a fact of the log like any other, and planners heed it."""

import pytest

from tests.core.drive import drive
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.erasure import STREAM, SubjectErased, erase
from vmorch.core.errors import Rejected
from vmorch.core.ids import OperationId, Stream, VmId
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.planning.admission import admit_on_vm
from vmorch.core.resources import operation_resource, vm_resource
from vmorch.core.sealed import NONCE, TAG, Box, write_sealed
from vmorch.core.states import digest, frame_of, held, read_row, restore, row_of

OTHER = Stream("vm/another")


def sealed(subject: Stream) -> str:
    return write_sealed(Box(subject, b"n" * NONCE, b"c" * (7 + TAG)))


def history_with(*hosts: str) -> History:
    history = History()
    for name in hosts:
        history.host(name)
    history.image("tiny")
    return history


def running(history: History, **fields: object) -> VmId:
    vm = history.create(asked("web", **fields))
    assert drive(history, vm).outcome == "succeeded"
    return vm


def test_a_subject_is_erased_once() -> None:
    history = History()
    assert erase(history.fleet.erasures, OTHER) == [SubjectErased(key_of=OTHER)]
    history.record(STREAM, SubjectErased(key_of=OTHER))
    assert history.fleet.erasures.subjects == {OTHER: history.facts[-1].recorded_at}
    assert erase(history.fleet.erasures, OTHER) == []


def test_a_checkpoint_of_the_state_keeps_what_is_erased() -> None:
    history = History().record(STREAM, SubjectErased(key_of=OTHER), SubjectErased(key_of=Stream("token/1")))
    fleet = history.fleet
    again = restore(fleet.position, frame_of(fleet, {}), [read_row(row_of(each)) for each in held(fleet)])
    assert again.erasures == fleet.erasures
    assert digest(again) == digest(fleet)
    assert again.version(STREAM) == 2
    assert fleet.copy().erasures == fleet.erasures


def test_a_vm_whose_user_data_is_erased_goes_to_no_other_host() -> None:
    history = history_with("h1", "h2")
    vm = running(history, user_data=sealed(OTHER), storage="shared")
    history.record(STREAM, SubjectErased(key_of=Stream("vm/of-somebody-else")))
    assert migrating(history, vm) is None
    history.record(STREAM, SubjectErased(key_of=OTHER))
    refusal = migrating(history, vm)
    assert refusal is not None
    assert refusal.code == "no-host-fits"
    assert "user data was erased" in str(refusal.facts)


def migrating(history: History, vm: VmId) -> Rejected | None:
    state = history.fleet.vms[vm]
    try:
        admit_on_vm(history.fleet, state, MigrateVm(), operation=OperationId("o"), who=WHO)
    except Rejected as refusal:
        return refusal
    return None


def test_sealed_user_data_is_told_in_brief_by_all_that_shows_a_vm() -> None:
    history = history_with("h1")
    vm = history.fleet.vms[running(history, user_data=sealed(OTHER))]
    seed = vm_resource(history.fleet, vm).spec.seed
    assert seed is not None
    assert seed.user_data == "(7 bytes, sealed)"
    [operation] = vm.operations.values()
    assert operation_resource(history.fleet, vm, operation).arguments["user_data"] == "(7 bytes, sealed)"


def test_sealed_text_counts_for_the_limit_as_long_as_it_was_before() -> None:
    history = history_with("h1")
    keys = ("ssh-ed25519 " + "A" * 16000,) * 8
    fits = write_sealed(Box(OTHER, b"n" * NONCE, b"c" * (255 * 1024 + TAG)))
    history.create(asked("web", user_data=fits, ssh_keys=keys))
    beyond = write_sealed(Box(OTHER, b"n" * NONCE, b"c" * (385 * 1024 + TAG)))
    with pytest.raises(Rejected, match="exceed"):
        history.create(asked("db", user_data=beyond))
