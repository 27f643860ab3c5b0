"""`vmorch vm backup`: back a VM up, and see its backups.

Must not import what is needed only once the API was asked.
"""

import click

from cli.completion import complete_vm
from cli.session import Session
from cli.transport import quote
from cli.verbs import Entry, Group, past_option, verb

_HERE = "cli.commands.vm_backup"

backup = Group(
    "backup",
    {
        "list": Entry(f"{_HERE}:list_backups", "List a VM's backups", "Look"),
        "create": Entry("cli.commands.vm_backup_create:create", "Back a VM up", "Change"),
    },
    help="Backups of a VM. What else is done with them: vmorch backup.",
    foreign={
        "ls": "vmorch vm backup list VM",
        "take": "vmorch vm backup create VM",
        "add": "vmorch vm backup create VM",
        "new": "vmorch vm backup create VM",
        "restore": "vmorch backup restore BACKUP --name NEW",
        "verify": "vmorch backup verify BACKUP",
        "describe": "vmorch backup describe BACKUP",
        "delete": "vmorch backup delete BACKUP",
        "rm": "vmorch backup delete BACKUP",
    },
    examples=("vmorch vm backup create db-1 --quiesce", "vmorch vm backup list db-1"),
)


@verb("list", examples=("vmorch vm backup list db-1",), help="List a VM's backups, newest first.")
@click.argument("vm", metavar="VM", shell_complete=complete_vm)
@click.option("--no-headers", is_flag=True, help="No header line.")
@past_option
@click.pass_obj
def list_backups(session: Session, /, vm: str, no_headers: bool) -> None:
    from cli.commands.backup import show

    show(session, f"/v1/vms/{quote(vm)}/backups", {}, headers=not no_headers, watch=False)
