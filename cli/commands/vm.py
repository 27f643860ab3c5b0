"""`vmorch vm`: what must be written by hand is listed here, every other verb comes from the registry of commands.

Must not read the data of a verb before it, or the list of them, is asked for.
"""

import click

from cli.verbs import Entry, Group

ENTRIES = {
    "create": Entry(
        "cli.commands.vm_create:create", "Create a VM from an image and start it", "Look and make"
    ),
    "list": Entry("cli.commands.vm_read:list_vms", "List VMs", "Look and make"),
    "describe": Entry("cli.commands.vm_read:describe", "Everything about a VM", "Look and make"),
    "snapshot": Entry(
        "cli.commands.vm_snapshot:snapshot", "Take, list and delete snapshots, or by a schedule", "Snapshots"
    ),
    "backup": Entry("cli.commands.vm_backup:backup", "Back a VM up, list its backups", "Snapshots"),
    "rollback": Entry("cli.commands.vm_rollback:rollback", "Bring a VM back to a snapshot", "Snapshots"),
}

FOREIGN = {
    "get": "vmorch vm list",
    "ls": "vmorch vm list",
    "show": "vmorch vm describe NAME",
    "info": "vmorch vm describe NAME",
    "dominfo": "vmorch vm describe NAME",
    "run": "vmorch vm create NAME --image IMAGE",
    "launch": "vmorch vm create NAME --image IMAGE",
    "new": "vmorch vm create NAME --image IMAGE",
    "define": "vmorch vm create NAME --image IMAGE",
    "shutdown": "vmorch vm stop NAME",
    "destroy": "vmorch vm stop NAME --force (delete also removes its disks)",
    "reset": "vmorch vm reboot NAME --force",
    "restart": "vmorch vm reboot NAME",
    "suspend": "vmorch vm pause NAME",
    "unpause": "vmorch vm resume NAME",
    "rm": "vmorch vm delete NAME",
    "remove": "vmorch vm delete NAME",
    "undefine": "vmorch vm delete NAME --keep-disks",
    "setmem": "vmorch vm resize NAME --memory SIZE",
    "setvcpus": "vmorch vm resize NAME --vcpus N",
    "snapshots": "vmorch vm snapshot list NAME",
    "snapshot-create": "vmorch vm snapshot create NAME",
    "snapshot-create-as": "vmorch vm snapshot create NAME --name SNAPSHOT",
    "snapshot-list": "vmorch vm snapshot list NAME",
    "snapshot-info": "vmorch vm snapshot describe NAME SNAPSHOT",
    "snapshot-current": "vmorch vm snapshot list NAME",
    "snapshot-delete": "vmorch vm snapshot delete NAME SNAPSHOT",
    "snapshot-revert": "vmorch vm rollback NAME --to SNAPSHOT",
    "checkpoint": "vmorch vm snapshot create NAME",
    "backups": "vmorch vm backup list NAME",
    "backup-begin": "vmorch vm backup create NAME",
    "save": "vmorch vm snapshot create NAME --memory",
    "managedsave": "vmorch vm snapshot create NAME --memory",
    "blockcommit": "vmorch vm snapshot delete NAME SNAPSHOT",
    "revert": "vmorch vm rollback NAME --to SNAPSHOT",
    "restore": "vmorch vm rollback NAME --to SNAPSHOT (from a backup: vmorch backup restore)",
    "undo": "vmorch vm rollback NAME --to SNAPSHOT",
    "history": "vmorch event list --subject vm/NAME",
    "events": "vmorch event list --subject vm/NAME",
}


class VmGroup(Group):
    """The written commands, then the derived ones."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        written = super().get_command(ctx, cmd_name)
        if written is not None or cmd_name in self.foreign:
            return written
        from cli.verb_data import load

        data = load(cmd_name)
        if data is None or data.place:
            return None
        from cli.derived import command_for

        return command_for(data)

    def list_commands(self, ctx: click.Context) -> list[str]:
        from cli.verb_data import summaries

        return [*super().list_commands(ctx), *summaries()]

    def summaries(self, ctx: click.Context) -> list[tuple[str, str, str]]:
        from cli.verb_data import summaries

        derived = [("Change", verb, summary) for verb, summary in sorted(summaries().items())]
        return [*super().summaries(ctx), *derived]


    def unknown(self, ctx: click.Context, name: str) -> str:
        from cli.verb_data import load

        data = load(name)
        if data is not None and data.place:
            return f"vmorch has no {name!r} here; type: vmorch vm {data.place} NAME"
        return super().unknown(ctx, name)


vm = VmGroup(
    "vm",
    ENTRIES,
    help="Virtual machines.",
    foreign=FOREIGN,
    examples=(
        "vmorch vm create web-1 --image debian-13 --memory 2Gi --vcpus 2",
        "vmorch vm list 'web-*' --state running",
        'vmorch vm stop -l tier=test --reason "CHG-2211"',
    ),
)
