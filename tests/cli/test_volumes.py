"""Volumes from the command line: what is shown, what is asked before, what is sent."""

import json

import pytest

from tests.cli import api as make
from tests.cli.api import Api
from tests.cli.conftest import Run
from vmorch.core.volume_resources import StrayResource, VolumeResource


def volume(name: str, **more: object) -> VolumeResource:
    fields = {
        "id": f"id-{name}", "name": name, "state": "available", "size": 40, "storage": "shared", "host": "hv-01",
        "vm": None, "disk": None, "image": None, "source": "", "quarantined_at": None, "created_at": make.AT,
        "stray": False, "files": (), "bytes": 0, "path": f"vms/id-{name}/vda.qcow2", "version": 1, **more,
    }  # fmt: skip
    return VolumeResource(**fields)  # type: ignore[arg-type]  # the fields are of many types


def finished(api: Api, path: str, verb: str, vm: str = "db-1") -> None:
    end = make.operation("succeeded", "work:done", verb=verb, vm_name=vm, ended_at=make.AT)
    api.on(f"GET /v1/operations/{make.OP}/watch", lambda asked: make.stream(make.events(("operation", end))))
    api.on(f"POST {path}", make.accepted("data"))


def test_the_list_tells_who_uses_each(api: Api, vmorch: Run) -> None:
    rows = [
        volume("data", state="attached", vm="db-1", disk="vdb"),
        volume("old", state="quarantined", quarantined_at=make.AT),
        volume("stray-beef", state="quarantined", stray=True, bytes=3 << 30, storage="local", files=("vda.qcow2",)),
    ]
    api.on("GET /v1/volumes", make.listing("Volume", rows))
    done = vmorch("volume", "list", "--state", "attached", "--time", "utc")
    assert [line.split()[:7] for line in done.stdout.splitlines()] == [
        ["NAME", "STATE", "SIZE", "STORAGE", "HOST", "VM", "AGE"],
        ["data", "attached", "40Gi", "shared", "hv-01", "db-1", "(vdb)"],
        ["old", "quarantined", "40Gi", "shared", "hv-01", "-", "2026-11-20"],
        ["stray-beef", "quarantined", "3Gi", "local", "hv-01", "-", "2026-11-20"],
    ]
    assert api.asked[-1].query["state"] == ["attached"]


@pytest.mark.parametrize(
    ("arguments", "path", "verb", "body", "said"),
    [
        (("create", "data", "--size", "40Gi"), "/v1/volumes", "create-volume",
         {"name": "data", "size": 40, "storage": "shared"}, "volume data is available"),
        (("attach", "data", "db-1"), "/v1/volumes/data/attach", "attach-volume",
         {"vm": "db-1"}, "volume data is a disk of db-1"),
        (("detach", "data"), "/v1/volumes/data/detach", "detach-volume",
         {}, "volume data is available; db-1 has let go of it"),
        (("resize", "data", "1Ti"), "/v1/volumes/data/resize", "grow-disk",
         {"size": 1024}, "volume data is larger"),
        (("clone", "data", "copy"), "/v1/volumes/data/clone", "clone-volume",
         {"name": "copy"}, "volume data is copied"),
        (("quarantine", "hv-01", "0192f0c1-7a3b-7000-8000-00000000beef"), "/v1/strays/hv-01/set-aside", "set-aside",
         {"id": "0192f0c1-7a3b-7000-8000-00000000beef", "storage": "local"},
         "0192f0c1-7a3b-7000-8000-00000000beef is set aside as volume stray-00000000beef"),
    ],
)  # fmt: skip
def test_a_change_is_asked_for_and_what_became_of_it_told(
    api: Api, vmorch: Run, arguments: tuple[str, ...], path: str, verb: str, body: dict[str, object], said: str
) -> None:
    finished(api, path, verb)
    done = vmorch("volume", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == said
    posted = next(each for each in api.asked if each.method == "POST")
    assert json.loads(posted.body) == body


def test_nothing_is_deleted_without_being_confirmed(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/volumes/data", make.single("Volume", volume("data")))
    done = vmorch("volume", "delete", "data")
    assert done.returncode == 6
    assert "confirmation-missing" in done.stderr
    assert not [each for each in api.asked if each.method == "POST"]


def test_what_nobody_owns_is_asked_of_the_hosts_that_can_be_asked(api: Api, vmorch: Run) -> None:
    hosts = [make.host("hv-01"), make.host("hv-02", state="unreachable")]
    api.on("GET /v1/hosts", make.listing("Host", hosts))
    finished(api, "/v1/strays/hv-01/find", "find-strays")
    stray = StrayResource(
        id="id-1", name="id-1", host="hv-01", storage="local", files=("vda.qcow2",), bytes=1 << 20, seen_at=make.AT
    )
    api.on("GET /v1/strays", make.listing("Stray", [stray]))
    done = vmorch("volume", "list", "--orphans", "--time", "utc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:5] == ["hv-01", "local", "id-1", "1Mi", "vda.qcow2"]
    assert "hv-02 is unreachable" in done.stderr
    assert vmorch("volume", "list", "--orphans", "--vm", "db-1").returncode == 2
