"""What only a guest or an auditor shall read lies sealed in the log, is opened where it is used, and can be erased."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.engine.cluster import OPERATOR, Cluster, cluster
from vmorch.core.aggregates.erasure import STREAM
from vmorch.core.codec import decode
from vmorch.core.errors import Rejected
from vmorch.core.ids import MiB, Position, RequestId, Stream, VmId
from vmorch.core.operations.back_up import BackUpVm
from vmorch.core.operations.create import CreateVm
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.operations.restore import RestoreBackup
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.spec import VmSpec
from vmorch.engine.caller import Accepted, Caller
from vmorch.engine.recorder import fingerprint
from vmorch.log.errors import LogUnavailable
from vmorch.log.keyring import MemoryKeyring

pytestmark = pytest.mark.anyio

ADMIN = Caller(actor="ada", role="admin", reason="case 4711")
SECRET = "#cloud-config\npassword: hunter2\n"
ALICE = "Alice Meyer <alice@example.org>"
REQUEST = RequestId("0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d")


async def with_secret(made: Cluster, name: str = "web", **fields: object) -> VmId:
    accepted = await made.create(name, user_data=SECRET, **fields)
    assert accepted.operation is not None
    assert (await made.over(accepted.operation)).outcome == "succeeded"
    return made.vm(name).id


async def stored(made: Cluster) -> bytes:
    """Everything in the log."""
    return b"\n".join(each.data + each.meta for each in await made.log.read(Position(0), 100_000))


def told(made: Cluster, name: str) -> str:
    """The user data in the seed that the VM's host holds for its guest."""
    vm = made.vm(name)
    assert vm.host is not None
    return made.host(made.fleet.hosts[vm.host].name).hypervisor.host.seeds[vm.id].seed.user_data


def spec(made: Cluster, name: str) -> VmSpec:
    found = made.vm(name).spec
    assert found is not None
    return found


async def refused(made: Cluster, subject: str, caller: Caller = ADMIN) -> Rejected:
    with pytest.raises(Rejected) as refusal:
        await made.control.erasing.erase(subject, caller)
    return refusal.value


async def erased(made: Cluster) -> list[str]:
    """What the log says is erased, in order."""
    return [each.data.decode() for each in await made.log.read_stream(STREAM)]


async def test_a_guest_gets_its_user_data_and_the_log_holds_none_of_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        vm = await with_secret(made)
        assert told(made, "web") == SECRET
        assert b"hunter2" not in await stored(made)
        assert spec(made, "web").sealed_for == f"vm/{vm}"


async def test_what_is_refused_or_only_asked_for_makes_no_key(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        command = CreateVm(name="web", image="tiny", memory=MiB(512), user_data=SECRET)
        await made.control.plan_create(command, OPERATOR)
        with pytest.raises(Rejected):
            await made.control.create_vm(replace(command, memory=MiB(1 << 20)), OPERATOR)
        assert await made.keyring.masters() == set()


async def test_a_repeat_is_known_and_one_with_other_user_data_is_not(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        again = replace(OPERATOR, request=REQUEST)
        command = CreateVm(name="web", image="tiny", memory=MiB(512), user_data=SECRET)
        first = await made.control.create_vm(command, again)
        assert await made.control.create_vm(command, again) == first
        with pytest.raises(Rejected) as refusal:
            await made.control.create_vm(replace(command, user_data="#cloud-config\n"), again)
        assert refusal.value.code == "request-reused"
        asking = replace(ADMIN, request=RequestId("r"))
        made_first = await made.control.create_token("am", "viewer", None, asking, ALICE)
        assert await made.control.create_token("am", "viewer", None, asking, ALICE) == made_first
        with pytest.raises(Rejected, match="another request"):
            await made.control.create_token("am", "viewer", None, asking, "Bob")


async def test_a_guess_of_the_user_data_cannot_be_tried_on_the_log(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        command = CreateVm(name="web", image="tiny", memory=MiB(512), user_data=SECRET)
        await made.control.create_vm(command, OPERATOR)
        [created] = [each for each in await made.log.read(Position(0), 1000) if each.kind == "vm.created"]
        recorded = decode(created).meta.fingerprint
        assert recorded is not None
        assert recorded != fingerprint("ada", "create", "web", command)


async def test_the_holder_of_a_token_is_sealed_until_he_is_erased(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await made.control.create_token("am", "operator", None, ADMIN, ALICE)
        await made.control.create_token("ci", "operator", None, ADMIN)
        assert b"Alice" not in await stored(made)
        holder = made.fleet.find_token("am").holder
        assert await made.control.keys.reveal([holder, ""]) == {holder: ALICE, "": ""}
        await made.control.revoke_token("am", ADMIN)
        await made.control.erasing.erase("token/am", ADMIN)
        assert await made.control.keys.reveal([holder]) == {holder: "(erased)"}
        assert (await refused(made, "token/ci")).code == "nothing-sealed"


async def test_an_erasure_is_recorded_once_with_its_reason(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        vm = await with_secret(made)
        assert (await refused(made, "vm/web", replace(ADMIN, reason=""))).code == "reason-missing"
        done = await made.control.erasing.erase("vm/web", replace(ADMIN, request=REQUEST))
        assert (done.subject, done.name) == (f"vm/{vm}", "web")
        assert await made.control.erasing.erase("vm/web", replace(ADMIN, request=REQUEST)) == done
        assert (await refused(made, "vm/web")).code == "already-so"
        [record] = await made.log.read_stream(STREAM)
        assert record.data.decode() == f'{{"key_of":"vm/{vm}"}}'
        assert b"case 4711" in record.meta
        with pytest.raises(Rejected) as refusal:
            await made.control.keys.open(spec(made, "web").seed.user_data)  # type: ignore[union-attr]
        assert refusal.value.code == "erased"


async def test_erasing_changes_nothing_of_what_is_folded_from_the_log(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        await with_secret(made)
        before, state = await stored(made), made.vm("web")
        await made.control.erasing.erase("vm/web", ADMIN)
        assert (await stored(made)).startswith(before)
        assert made.vm("web") == state


class BreaksOnce(MemoryKeyring):
    """Out of reach when a key is to be destroyed for the first time."""

    broken = False

    async def erase(self, subject: Stream) -> bool:
        if not self.broken:
            self.broken = True
            raise LogUnavailable("gone")
        return await super().erase(subject)


async def test_a_repeat_finishes_what_a_crash_interrupted(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        keyring = BreaksOnce()
        made.control.keys.keyring = keyring
        vm = await with_secret(made)
        subject = Stream(f"vm/{vm}")
        with pytest.raises(LogUnavailable):
            await made.control.erasing.erase("vm/web", ADMIN)
        assert len(await erased(made)) == 1
        assert (await keyring.find([subject]))[subject].wrapped is not None
        assert isinstance(await made.control.erasing.erase("vm/web", ADMIN), Accepted)
        assert len(await erased(made)) == 1
        assert (await keyring.find([subject]))[subject].wrapped is None


async def test_a_vm_whose_user_data_is_erased_goes_on_where_it_is(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await with_secret(made, storage="shared")
        await made.control.erasing.erase("vm/web", ADMIN)
        assert (await made.do("web", StopVm())).outcome == "succeeded"
        assert (await made.do("web", StartVm())).outcome == "succeeded"
        with pytest.raises(Rejected) as refusal:
            await made.control.on_vm("web", MigrateVm(), OPERATOR)
        assert refusal.value.code == "no-host-fits"
        assert (await made.do("web", DeleteVm())).outcome == "succeeded"


async def test_a_step_that_needs_what_was_erased_meanwhile_fails_with_a_code(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        vm = await with_secret(made, storage="shared")
        host = made.vm("web").host
        await made.keyring.erase(Stream(f"vm/{vm}"))
        operation = await made.do("web", MigrateVm())
        assert (operation.outcome, operation.code) == ("undone", "erased")
        assert made.vm("web").host == host
        assert made.vm("web").power == "running"
        assert [vm in each.hypervisor.host.seeds for each in made.hosts.values()].count(True) == 1


async def test_a_deleted_vm_is_erased_by_its_name_or_its_id(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        ids = []
        for _ in range(2):
            ids.append(await with_secret(made))
            assert (await made.do("web", DeleteVm())).outcome == "succeeded"
        refusal = await refused(made, "vm/web")
        assert (refusal.code, refusal.facts["ids"]) == ("ambiguous-name", sorted(ids))
        await made.control.erasing.erase(f"vm/{ids[0]}", ADMIN)
        # of two that were called so there is one left to erase
        assert (await made.control.erasing.erase("vm/web", ADMIN)).subject == f"vm/{ids[1]}"
        for code, subject in (("no-such-vm", "vm/nobody"), ("bad-request", "host/h1"), ("bad-request", "vm/")):
            assert (await refused(made, subject)).code == code


async def test_a_vm_that_the_fleet_has_forgotten_is_erased_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmorch.core.fleet.KEPT_DELETED", 1)
    async with cluster(tmp_path, "h1") as made:
        vm = await with_secret(made)
        await made.do("web", DeleteVm())
        await with_secret(made, "shop")
        await made.do("shop", DeleteVm())
        assert vm not in made.fleet.vms
        assert (await made.control.erasing.erase(f"vm/{vm}", ADMIN)).subject == f"vm/{vm}"


async def test_a_restored_vm_is_opened_and_erased_with_the_one_that_it_was_made_from(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        vm = await with_secret(made, storage="shared")
        assert (await made.do("web", BackUpVm(name="one"))).outcome == "succeeded"
        accepted = await made.control.on_backup("one", RestoreBackup(name="again"), OPERATOR)
        assert accepted.operation is not None
        assert (await made.over(accepted.operation)).outcome == "succeeded"
        assert told(made, "again") == SECRET
        refusal = await refused(made, "vm/again")
        assert refusal.code == "nothing-sealed"
        assert f"vm/{vm}" in refusal.hint
        await made.control.erasing.erase("vm/web", ADMIN)
        with pytest.raises(Rejected) as late:
            await made.control.on_backup("one", RestoreBackup(name="third"), OPERATOR)
        assert late.value.code == "erased"
