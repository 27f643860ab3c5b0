"""Create a VM. Written by hand: its request is richer than flags that follow from fields."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli.changes import Request, Waiting, plan_or_carry_out
from cli.problems import Problem
from cli.session import Session
from cli.verbs import DURATION, PAIR, SIZE_GIB, SIZE_MIB, SectionOption, change_options, parsed, verb

F = TypeVar("F", bound=Callable[..., Any])

_KEY_KINDS = ("ssh-", "ecdsa-", "sk-")


def _net(text: str) -> dict[str, Any]:
    """`network=NAME,address=CIDR,gateway=IP,nameserver=IP` (the last one may repeat), or just a network's name."""
    if "=" not in text:
        return {"network": text} if text != "default" else {}
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in ("network", "address", "gateway", "nameserver"):
            raise ValueError(f'"{part}" is none of network=, address=, gateway=, nameserver=')
        if key == "nameserver":
            found.setdefault("nameservers", []).append(value)
        else:
            found[key] = value
    return found


def _extra_disk(text: str) -> dict[str, Any]:
    """`SIZE` or `SIZE,shared`."""
    size, _, storage = text.partition(",")
    if storage not in ("", "local", "shared"):
        raise ValueError(f'"{storage}" is no storage; write SIZE, SIZE,local or SIZE,shared')
    found: dict[str, Any] = {"size": SIZE_GIB.convert(size, None, None)}
    return {**found, "storage": storage} if storage else found


def _ready(text: str) -> dict[str, Any]:
    """`agent`, `none`, `http:PORT/PATH`, `tcp:PORT`."""
    by, _, rest = text.partition(":")
    if by in ("agent", "none") and not rest:
        return {"by": by}
    port, slash, path = rest.partition("/")
    if by not in ("http", "tcp") or not port.isdecimal() or (by == "tcp" and slash):
        raise ValueError(f'"{text}" is none of agent, none, http:80/path, tcp:22')
    return {"by": by, "port": int(port), **({"path": slash + path} if slash else {})}


def read_key(text: str) -> list[str]:
    """The public keys in a file, or the key itself. Raises Problem `bad-request`."""
    if text.startswith(_KEY_KINDS):
        return [text.strip()]
    try:
        lines = _content(text).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(
            "bad-request", f"--key: {text!r} is neither a public key nor a readable file"
        ) from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if any("PRIVATE KEY" in line for line in keys):
        raise Problem(
            "bad-request", f"--key: {text} is a PRIVATE key; it was not sent", hint=f"--key {text}.pub"
        )
    return keys


def _content(path: str) -> str:
    with open(os.path.expanduser(path)) as file:
        return file.read()


def _read_text(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    try:
        return _content(path)
    except (OSError, UnicodeDecodeError) as error:
        raise Problem("bad-request", f"--user-data: {path} cannot be read: {error}") from error


def body_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The request's body: what was typed and nothing else."""
    body: dict[str, Any] = {"name": name}
    for field in ("image", "vcpus", "max_vcpus", "memory", "max_memory", "disk", "storage"):
        if given.get(field) is not None:
            body[field] = given[field]
    if given.get("extra_disk"):
        body["extra_disks"] = list(given["extra_disk"])
    if given.get("no_net"):
        body["nics"] = []
    elif given.get("net"):
        body["nics"] = list(given["net"])
    keys = [key for text in given.get("key") or () for key in read_key(text)]
    if keys:
        body["ssh_keys"] = keys
    if given.get("user_data"):
        body["user_data"] = _read_text(given["user_data"])
    ready = {
        **(given.get("ready") or {}),
        **({"within": given["ready_within"]} if given.get("ready_within") else {}),
    }
    if ready:
        body["ready"] = ready
    if given.get("label"):
        body["labels"] = dict(given["label"])
    placing = {
        "host": given.get("host"),
        "host_labels": dict(given.get("host_label") or ()),
        "away_from": dict(given.get("away_from") or ()),
    }
    if any(placing.values()):
        body["placing"] = {name: value for name, value in placing.items() if value}
    if given.get("eviction"):
        body["eviction"] = given["eviction"]
    if given.get("no_start"):
        body["start"] = False
    return body


def _grouped(section: str, *names: str, **more: Any) -> Callable[[F], F]:
    return click.option(*names, cls=SectionOption, section=section, **more)


@verb(
    "create",
    examples=(
        "vmorch vm create web-1 --image debian-13 --memory 2Gi",
        "vmorch vm create db-1 --image debian-13 --vcpus 4 --memory 16Gi \\",
        "    --disk 40Gi --extra-disk 200Gi --key ~/.ssh/id_ed25519.pub",
        "vmorch vm create web-2 --image debian-13 --memory 2Gi --label app=web \\",
        "    --net network=prod,address=10.0.4.13/24,gateway=10.0.4.1 \\",
        "    --away-from app=web --ready http:80/healthz --ready-within 2m",
        "vmorch vm create big --image debian-13 --memory 512Gi --dry-run",
    ),
    help="Create a VM from an image, start it, and wait until it is up.",
)
@click.argument("name")
@_grouped("Size", "--image", required=True, metavar="NAME", help="An image's name or digest.")
@_grouped("Size", "--vcpus", type=click.IntRange(1), metavar="N", help="Virtual CPUs; default 1.")
@_grouped(
    "Size", "--max-vcpus", type=click.IntRange(1), metavar="N", help="Bound of later changes while it runs."
)
@_grouped("Size", "--memory", required=True, type=SIZE_MIB, help="Memory, such as 2Gi.")
@_grouped("Size", "--max-memory", type=SIZE_MIB, help="Bound of later changes while it runs.")
@_grouped("Size", "--disk", type=SIZE_GIB, help="Root disk; default: as small as the image allows.")
@_grouped(
    "Size", "--storage", type=click.Choice(("local", "shared")), help="Where the root disk is; default local."
)
@_grouped(
    "Size",
    "--extra-disk",
    type=parsed("size[,shared]", _extra_disk),
    multiple=True,
    help="A further, empty disk (repeatable).",
)
@_grouped(
    "Network",
    "--net",
    type=parsed("spec", _net),
    multiple=True,
    help="A card: NAME, or network=,address=,gateway=,nameserver= (repeatable). Default: one, by DHCP.",
)
@_grouped("Network", "--no-net", is_flag=True, help="No network card.")
@_grouped("Guest", "--key", multiple=True, metavar="FILE|TEXT", help="A public SSH key (repeatable).")
@_grouped("Guest", "--user-data", metavar="FILE", help="cloud-init user data; - reads stdin.")
@_grouped(
    "Guest",
    "--ready",
    type=parsed("check", _ready),
    help="When it is up: agent (default), none, http:80/path, tcp:22.",
)
@_grouped("Guest", "--ready-within", type=DURATION, help="How long that may take; default 3m.")
@_grouped("Guest", "--no-start", is_flag=True, help="Leave it off.")
@_grouped("Placement", "-l", "--label", type=PAIR, multiple=True, help="A label of the VM (repeatable).")
@_grouped("Placement", "--host", metavar="NAME", help="On this host or nowhere.")
@_grouped(
    "Placement", "--host-label", type=PAIR, multiple=True, help="On hosts with this label (repeatable)."
)
@_grouped(
    "Placement",
    "--away-from",
    type=PAIR,
    multiple=True,
    help="Not where VMs with this label are (repeatable).",
)
@_grouped(
    "Placement",
    "--eviction",
    type=click.Choice(("live", "restart", "stop", "never")),
    help="What becomes of it when its host is drained; default live.",
)
@change_options()
@click.pass_obj
def create(
    session: Session, /, name: str, dry_run: bool, detach: bool, timeout: float | None, **given: Any
) -> None:
    if not dry_run:
        # before its specification is read, perhaps from what is typed
        session.demand_reason()
    request = Request(
        label="vm.create", name=name, path="/v1/vms", body=body_of(name, given), request_id=session.request_id
    )
    plan_or_carry_out(session, request, Waiting(detach=detach, timeout=timeout), dry_run=dry_run)
