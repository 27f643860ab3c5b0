"""`vmorch vm snapshot`: moments that a VM can be brought back to. Must not import any of its commands."""

from cli.verbs import Entry, Group

_READ, _CHANGE = "cli.commands.vm_snapshot_read", "cli.commands.vm_snapshot_change"

snapshot = Group(
    "snapshot",
    {
        "list": Entry(f"{_READ}:list_snapshots", "The tree of a VM's snapshots", "Look"),
        "describe": Entry(f"{_READ}:describe", "Everything about a snapshot", "Look"),
        "create": Entry(f"{_CHANGE}:create", "Take a snapshot", "Change"),
        "delete": Entry(f"{_CHANGE}:delete", "Delete a snapshot; what came after it stays", "Change"),
        "policy": Entry(f"{_CHANGE}:policy", "See or set the schedule of a VM's snapshots", "Change"),
    },
    help="Snapshots: moments that a VM can be brought back to with vmorch vm rollback.",
    foreign={
        "ls": "vmorch vm snapshot list VM",
        "tree": "vmorch vm snapshot list VM",
        "get": "vmorch vm snapshot describe VM SNAPSHOT",
        "show": "vmorch vm snapshot describe VM SNAPSHOT",
        "info": "vmorch vm snapshot describe VM SNAPSHOT",
        "take": "vmorch vm snapshot create VM",
        "add": "vmorch vm snapshot create VM",
        "new": "vmorch vm snapshot create VM",
        "rm": "vmorch vm snapshot delete VM SNAPSHOT",
        "remove": "vmorch vm snapshot delete VM SNAPSHOT",
        "merge": "vmorch vm snapshot delete VM SNAPSHOT",
        "commit": "vmorch vm snapshot delete VM SNAPSHOT",
        "revert": "vmorch vm rollback VM --to SNAPSHOT",
        "restore": "vmorch vm rollback VM --to SNAPSHOT",
        "rollback": "vmorch vm rollback VM --to SNAPSHOT",
        "apply": "vmorch vm rollback VM --to SNAPSHOT",
        "schedule": "vmorch vm snapshot policy VM --every 1h --hourly 12",
    },
    examples=(
        "vmorch vm snapshot create db-1 --name pre-upgrade --quiesce",
        "vmorch vm snapshot list db-1",
        "vmorch vm rollback db-1 --to pre-upgrade",
        "vmorch vm snapshot policy db-1 --every 1h --hourly 12 --daily 7",
    ),
)
