"""Every stable code of a refusal or failure: its HTTP status, the CLI's exit code, and what it means.

The one list behind problem documents, exit codes, `vmorch explain` and the handbook. Codes are forever.
"""

from typing import Literal

from vmorch.core.value import Value

Exit = Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
"""0 done, 1 failed, 2 usage, 3 not found, 4 not allowed, 5 conflict, 6 refused, 7 unreachable, 8 timeout,
9 some of several failed, 10 differences, 11 integrity."""


class Code(Value, frozen=True):
    """A code's HTTP status, exit code, title and explanation."""

    status: int
    exit: Exit
    title: str
    explanation: str


REFUSALS: dict[str, Code] = {
    # refusals of a request
    "bad-request": Code(400, 2, "The request cannot be read", "Its body or a parameter does not have the documented shape; the message names the field."),
    "bad-spec": Code(422, 2, "The specification contradicts itself", "Two of its figures cannot hold together; the message names them."),
    "bad-name": Code(422, 2, "The name is malformed", "Names are 1 to 63 of a-z, 0-9 and -, and neither begin nor end with -."),
    "unauthenticated": Code(401, 4, "No valid token", "The request carries no token, or one that is unknown, expired or revoked."),
    "forbidden": Code(403, 4, "Not allowed", "The token's role does not include this."),
    "not-found": Code(404, 3, "No such thing", "Nothing is served at this address."),
    "wrong-method": Code(405, 2, "Another method is needed", "The address exists, but not for this HTTP method; the Allow header lists those that it knows."),
    "no-such-vm": Code(404, 3, "No such VM", "No living VM has this name or id."),
    "no-such-snapshot": Code(404, 3, "No such snapshot", "The VM has no snapshot of this name; it may have been deleted."),
    "no-such-volume": Code(404, 3, "No such volume", "No volume has this name or id; it may have been deleted for good."),
    "no-such-stray": Code(404, 3, "No such directory", "The host told of no such directory that nobody owns; ask it again with vmorch volume list --orphans."),
    "volume-in-use": Code(409, 6, "The volume is in use", "A volume is one VM's disk at a time, and is worked on by one operation at a time; detach it, or wait."),
    "volume-not-attached": Code(409, 6, "The volume is no VM's disk", "Only a volume that is attached can be detached."),
    "volume-quarantined": Code(409, 6, "The volume waits to be deleted", "It was deleted once and can still be had back with vmorch volume restore; deleted once more it is gone."),
    "volume-elsewhere": Code(409, 6, "The volume is out of the VM's reach", "A volume on local storage can be used on its own host only, and one on shared storage where that is seen."),
    "volume-kept-by-snapshots": Code(409, 6, "Snapshots hold the disk", "A disk that snapshots keep states of consists of several layers and cannot stand by itself; delete those snapshots first."),
    "no-such-host": Code(404, 3, "No such host", "No host of the cluster has this name or id."),
    "no-such-image": Code(404, 3, "No such image", "No image has this name, id or digest."),
    "no-such-operation": Code(404, 3, "No such operation", "No operation has this id."),
    "no-such-token": Code(404, 3, "No such token", "No token in force has this name or id."),
    "no-such-drain": Code(404, 3, "No such drain or plan", "No drain or plan has this id."),
    "no-such-maintenance": Code(404, 3, "No such maintenance", "No maintenance has this id."),
    "no-such-budget": Code(404, 3, "No such budget", "No budget has this name or id."),
    "no-such-backup": Code(404, 3, "No such backup", "No backup has this name or id; it may have been deleted."),
    "bad-moment": Code(400, 2, "No such moment", "A moment is a position (@48204), a time with its zone (2026-11-20T14:00:00Z), or how long ago (-2h)."),
    "future-moment": Code(400, 2, "The moment has not come", "Only the past and the present can be asked about: the time lies ahead of the server's clock, or the position beyond the end of the log."),
    "no-such-event": Code(404, 3, "No such event", "The log holds no event at this position."),
    "no-such-verb": Code(404, 3, "No such verb", "This kind of object does not know the verb."),
    "ambiguous-name": Code(409, 5, "The name is ambiguous", "Several objects begin with this; give more of the id."),
    "name-taken": Code(409, 5, "The name is taken", "Another living object of the same kind holds the name."),
    "version-conflict": Code(409, 5, "Somebody was faster", "The object changed between the decision and its recording, repeatedly; look again and repeat."),
    "request-reused": Code(409, 5, "The request id was used for something else", "A request id names one request; a repeat must be the same request."),
    "operation-in-flight": Code(409, 6, "The VM is busy", "One operation at a time owns a VM; wait for it or cancel it."),
    "wrong-power-state": Code(409, 6, "The VM is in the wrong power state", "The command needs another power state than the VM was last seen in."),
    "vm-gone": Code(409, 6, "The VM was deleted", "Nothing can be done to a deleted VM."),
    "already-so": Code(409, 6, "Nothing to do", "The object is already in the state asked for."),
    "already-over": Code(409, 6, "The operation is over", "A finished operation can be neither cancelled nor changed."),
    "point-of-no-return": Code(409, 6, "Too late to take back", "A step that cannot be undone is done; the operation is carried through."),
    "chain-too-deep": Code(409, 6, "Too many layers lie above each other", "Each snapshot adds a layer under the guest, and each layer costs it a little when it reads old data; deleting a snapshot below merges its layer away."),
    "too-many-snapshots": Code(409, 6, "The VM has too many snapshots", "Delete those that nobody needs; a schedule that keeps fewer helps."),
    "other-disks": Code(409, 6, "The VM has other disks than then", "A volume that the VM got after the snapshot has no state to go back to; detach it, go back, and attach it again."),
    "config-differs": Code(409, 6, "The VM is not shaped as it was then", "Kept memory fits only the vCPUs, memory, disks and cards that it was taken with; --config-too brings those back too."),
    "cannot-migrate": Code(409, 6, "The VM cannot move there", "Everything that stands in the way is listed; nothing was begun."),
    "too-many-migrations": Code(409, 6, "Too many guests travel now", "The cluster's policy bounds how many leave a host, come to one, and travel in all."),
    "draining": Code(409, 6, "The host is being drained", "A drain of the host, or the return of its VMs, is under way; watch it or cancel it."),
    "drain-blocked": Code(409, 6, "Some VMs cannot be moved", "Nothing was begun. Each of them is listed with everything that stands in its way; --on-blocked says what shall become of them."),
    "in-maintenance": Code(409, 6, "The host is in maintenance", "A maintenance of the host is under way and decides when it returns to service; look at it, or cancel it."),
    "not-open": Code(409, 6, "The host is not open for work", "Only of a host whose VMs are gone and whose hook has run can it be said that the work on it is done."),
    "plan-stale": Code(409, 5, "The plan is stale", "Later events touch what it decided; they are listed. --rebase plans anew and keeps the moves that still hold."),
    "nothing-to-bring-back": Code(409, 6, "Nothing to bring back", "No drain moved a VM away from the host that is still where the drain left it."),
    "host-offline": Code(409, 7, "The host is unreachable", "The VM's host is not connected now; nothing was begun."),
    "host-connected": Code(409, 6, "The host is connected", "Only a host that is gone can be given up as lost; move or delete its VMs instead."),
    "host-not-empty": Code(409, 6, "VMs stand on the host", "A host is retired only when no capacity of it is promised."),
    "no-host-fits": Code(409, 6, "No host can take the VM", "Placement refused every host; the reasons are listed per host."),
    "no-capacity": Code(409, 6, "The host is full", "What is asked for does not fit beside what is promised to others."),
    "backup-needed": Code(409, 6, "Other backups stand on it", "An incremental backup is of no use without the ones below it; --with-children deletes those too."),
    "backup-broken": Code(409, 6, "The backup is not whole", "It was never made to its end, or something that it stands on is not there."),
    "target-away": Code(409, 7, "No host sees the backup", "None of the hosts that see its target is connected."),
    "address-taken": Code(409, 6, "Another VM has the address", "Two VMs with one fixed address disturb each other. --isolated restores without network cards."),
    "image-in-use": Code(409, 6, "The image is in use", "Disks of living VMs stand on it."),
    "wrong-checksum": Code(422, 6, "The checksum differs", "The bytes that came do not have the SHA-256 that was asked for; they were thrown away."),
    "hostile-image": Code(422, 6, "The image is refused", "Its header points outside itself, carries unknown features, claims an absurd size or is not what it says."),
    "image-too-large": Code(422, 6, "The image is too large", "Its bytes or its virtual size exceed what the cluster allows."),
    "bad-url": Code(422, 6, "The address is refused", "Only http and https to addresses that the cluster allows are fetched, redirects included."),
    "fetch-failed": Code(502, 7, "The address did not deliver", "The server behind the URL answered with an error or broke off."),
    "bad-token": Code(403, 4, "The enrolment token is not valid", "It is unknown or was used before; ask for a new one."),
    "token-expired": Code(403, 4, "The enrolment token has expired", "Ask for a new one."),
    "bad-csr": Code(422, 6, "The certificate request is refused", "It cannot be read, is not signed by its own key, has a weak key, or asks for more than names."),
    "foreign-name": Code(403, 4, "The name is not the host's", "A host's certificate carries its own name and addresses and none that another host holds; retire or enrol that one anew if it gave the name up."),
    "key-reused": Code(409, 6, "The key has a certificate already", "Each certificate is for a new key; a request that comes twice is refused."),
    "other-authority": Code(409, 6, "Another authority than the cluster's", "All servers of a cluster sign by one authority, or hosts would not know each other: give this server the keys of the others."),
    "other-log-key": Code(409, 6, "The log's signing key is not here", "Every server of a cluster signs the log's checkpoints with one key: give this server the file of the others. A lost key is replaced by vmorch server init --new-log-key, and auditors are told the new one."),
    "log-tampered": Code(409, 11, "The log is not what was sealed", "Something that a signed checkpoint vouches for was changed, removed or replaced; the message says what and where."),
    "not-sealed": Code(409, 6, "That part of the log is not sealed", "Proofs exist for what is sealed, which happens each second while a server leads and has the log's key; vmorch audit status says how far it is."),
    "archive-missing": Code(503, 7, "An archive is not here", "Old events lie in files in the server's directory of archives, and one that is needed cannot be read; the message names it. Put it back: nothing else holds those events. vmorch server archive list shows them all."),
    "archive-damaged": Code(409, 11, "An archive is not what was written", "The hash of its bytes is not the one that Postgres holds, so that it answers nothing. Put an intact copy in its place."),
    "no-such-archive": Code(404, 3, "No such archive", "No archived part of the log has this file name or these positions; vmorch server archive list shows them all."),
    "partition-in-use": Code(409, 6, "That part of the log is in use", "The newest events stay in Postgres, and so does a part that somebody reads for long, such as a dump of the database: repeat it when that is over."),
    "bad-checkpoint": Code(422, 11, "No checkpoint, or by no trusted key", "The text is no signed checkpoint of this log, or none of the keys that are trusted signed it."),
    "bad-export": Code(422, 11, "The export cannot be read", "A line of it is not what an export holds, or its end is missing; the message names the line."),
    "other-master-key": Code(409, 6, "The cluster's master key is not here", "Every server of a cluster wraps the keys of what is sealed in the log with one master key: give this server the file of the others. Without it that cannot be read; vmorch server init --new-master-key makes one for what is sealed from then on."),
    "key-damaged": Code(409, 11, "A subject's key is damaged", "What is kept as its key, or what is sealed with it, was changed behind the server's back; restore the table of keys from a backup."),
    "nothing-sealed": Code(409, 6, "Nothing is sealed for it", "The log holds nothing that the subject's own key opens; what a clone or a restored VM holds may be sealed for the VM that it was made from."),
    "too-many-certificates": Code(409, 6, "The host has too many certificates", "So many are in force at once only when something asks again and again; enrolling the host anew revokes them."),
    "confirmation-missing": Code(400, 6, "Confirmation is missing", "Without a terminal a destructive verb needs --yes."),
    "reason-missing": Code(400, 6, "A reason is missing", "This context is protected: give --reason."),
    "too-large": Code(413, 2, "The request is too large", "Its body exceeds the limit of this route."),
    "too-many-requests": Code(429, 7, "Too many requests", "This address was asked too often in a short time; wait a little and repeat."),
    # the control plane's own troubles
    "log-unavailable": Code(503, 7, "The event log is unreachable", "Postgres does not answer; nothing was recorded, or it is not known. Repeat with the same request id."),
    "server-unreachable": Code(503, 7, "The server is unreachable", "Nothing answers at the API's address."),
    "internal-error": Code(500, 1, "The server made a mistake", "A fault of vmorch; its log has the cause under the request id."),
    "server-disk-full": Code(507, 7, "The server's disk is full", "The image could not be stored."),
}  # fmt: skip
"""What a request can be answered with."""

OUTCOMES: dict[str, Code] = {
    "cancelled": Code(409, 1, "Cancelled", "The operation was cancelled and what it had done was taken back."),
    "host-lost": Code(409, 1, "The host was given up", "An operator declared the host lost; the operation ended with it."),
    "host-silent": Code(504, 7, "The host did not answer in time", "What became of the step is not known until the host is heard again; deleting the VM cleans up in any case."),
    "deadline-passed": Code(504, 1, "The step took too long", "The host gave the step up when its time was over."),
    "interrupted": Code(500, 1, "The step was interrupted repeatedly", "Agent or libvirt stopped in the middle of the step more often than it is tried again."),
    "no-domain": Code(409, 1, "The domain is not on its host", "libvirt does not know the VM; somebody removed it behind our back."),
    "not-ours": Code(409, 1, "Something that is not ours stands there", "A domain or file that vmorch did not make is in the way; it was not touched."),
    "no-image": Code(409, 1, "The image is not in the host's cache", "A disk was asked for before its image was there."),
    "image-digest-mismatch": Code(502, 1, "The image arrived damaged", "The bytes the host received do not have the image's digest."),
    "image-unavailable": Code(502, 1, "The image could not be fetched", "The host could not read the image from the control plane."),
    "disk-full": Code(507, 1, "The host's disk is full", "There is no room for the image or disk; nothing was left behind."),
    "no-such-storage": Code(409, 1, "The host has no such storage", "A shared disk was asked for on a host without shared storage."),
    "no-such-target": Code(409, 6, "No such target for backups", "Targets are directories that each host's agent is told of in its settings, under [backups]."),
    "no-network": Code(409, 1, "No network is named", "The card names no network and the host has no default one."),
    "storage-failed": Code(500, 1, "The host's storage failed", "The message is the kernel's own; the VM goes on as it was."),
    "qemu-img-failed": Code(500, 1, "qemu-img failed", "The message is qemu-img's own."),
    "disk-too-small": Code(422, 1, "The disk is smaller than its image", "A disk must be at least as large as the image it stands on."),
    "libvirt-refused": Code(409, 1, "libvirt refused", "The message is libvirt's own."),
    "libvirt-away": Code(503, 7, "libvirt is away", "The host's libvirt daemon does not answer."),
    "arrival-blocked": Code(409, 1, "The destination cannot take the guest in", "It was looked at by libvirt itself; everything that stands in the way is listed. The VM stayed where it was."),
    "drain-incomplete": Code(409, 1, "VMs stayed on the host", "Its drain could not take all of them away; each is named with its reason."),
    "host-ailing": Code(409, 1, "The host is not what it was", "After its maintenance it lacks what it had before, or does not answer; it stays out of service."),
    "drain-ended": Code(409, 1, "The drain ended before", "It was cancelled, its deadline passed or it was aborted before this VM's turn; the message says what the VM waited for."),
    "being-cancelled": Code(409, 1, "The move is being taken back", "The drain ended without waiting for it; its operation says how it went on."),
    "not-moved": Code(409, 1, "The VM did not move", "What both hosts show says that it stayed; what had been prepared was taken back."),
    "migration-stalled": Code(409, 1, "The migration made no progress", "The guest changed its memory faster than it could be carried; the VM stayed where it was. More bandwidth, a longer pause or --postcopy on-stall help."),
    "migration-failed": Code(409, 1, "The migration failed", "The message is libvirt's own; what both hosts show says where the VM is."),
    "outcome-unknown": Code(409, 6, "Nobody can tell where the VM is", "A migration ended while one of its hosts could not be seen, or both showed the VM. It is settled as soon as both answer; nothing is done with the VM before."),
    "chain-drift": Code(409, 1, "The disks are not as recorded", "The layers of the VM's disks on its host are not those that the log says. Every difference is named with its remedy; nothing was touched. Repeat the command once they are mended."),
    "freeze-failed": Code(409, 1, "The guest did not come to rest", "Its agent could not freeze its file systems in time. They were thawed and nothing was taken; --freeze-within gives it longer, and without --quiesce the disks are kept as after a power cut."),
    "thaw-failed": Code(409, 1, "The guest may still be frozen", "Its agent did not say that its file systems were thawed: programs in it that write may hang. Thaw them in the guest (fsfreeze --unfreeze PATH), or cut it and start it again: vmorch vm reboot NAME --force."),
    "memory-damaged": Code(409, 1, "The kept memory cannot be read", "The file with the memory of the guest is gone or is not what was written; the disks of the snapshot are not affected by that. Go back to another snapshot."),
    "backup-damaged": Code(409, 1, "The backup is damaged", "Its files are not what was made. Everything that differs is named; backups that do not stand on it are not affected."),
    "backup-failed": Code(409, 1, "The backup failed", "The message is QEMU's or libvirt's own; nothing of the backup was left."),
    "runs-here": Code(409, 1, "The domain runs here", "Only a halted half of a domain is cleared away; this one runs and was left alone."),
    "hook-failed": Code(409, 1, "The host's hook failed", "The script on the host ended with an error; its last words are in the message."),
    "erased": Code(409, 6, "It was erased", "What the step or the request needs was sealed in the log with a key that was destroyed on purpose; nobody can read it any more."),
    "device-held": Code(409, 1, "The guest did not let go of the disk", "A guest takes part in unplugging: one that hangs, boots or has no driver for it does not. The disk stays the VM's; unmount it in the guest and repeat, or detach it while the VM is off. The guest may still let go later, and repeating then ends it."),
    "guest-unheld": Code(409, 1, "The guest runs and libvirt does not know", "A libvirtd that was killed in a bad moment can come back without a guest that runs on. It was left alone, and no second one was started. The drop-in deploy/systemd/libvirtd.service.d/vmorch.conf keeps this from happening."),
    "busy": Code(409, 1, "The domain is busy", "Another libvirt job held the domain for too long."),
    "guest-did-not-stop": Code(409, 1, "The guest did not stop", "It ignored the request to shut down; --force cuts its power."),
    "not-ready": Code(504, 1, "The guest runs but is not ready", "It did not pass its readiness check in time and was left running."),
    "stale-session": Code(409, 7, "The agent began a new session", "The order belonged to an earlier session and was not carried out."),
    "stale-incarnation": Code(409, 6, "Another history of the log", "The agent was enrolled under another incarnation of the log and obeys no other."),
    "stale-epoch": Code(409, 6, "A newer owner", "The agent knows a newer epoch of the VM than the order carried."),
    "identity-changed": Code(409, 6, "The host is not who it was", "Its key or machine id differs from what was pinned; it is read only."),
    "fault": Code(500, 1, "The agent made a mistake", "A fault of the host's agent; its log has the cause. The host was looked at afterwards."),
    "unknown-command": Code(409, 6, "The agent is too old", "It does not know this order."),
}  # fmt: skip
"""What an operation, or a step of it on its host, can end with."""

CODES: dict[str, Code] = {**REFUSALS, **OUTCOMES}


def code_of(name: str) -> Code:
    """The entry of a code; an unknown one is a fault of ours and says so."""
    return CODES.get(name, CODES["internal-error"])
