"""The lab's command line: `python -m deploy.lab up`, `status`, `exec`, `down` and the faults.

Only parses, prints and reports refusals; every promise is made in `lab` and `host`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from deploy.lab import prerequisites, state
from deploy.lab.errors import LabError
from deploy.lab.host import Host
from deploy.lab.lab import Lab, running_labs

_EXAMPLES = """\
examples:
  python -m deploy.lab up                        two hosts and the control plane, called "lab"
  python -m deploy.lab up --name t1 --hosts 3 --no-control
  python -m deploy.lab status --name t1
  python -m deploy.lab exec hv-01 virsh list --all
  python -m deploy.lab exec hv-01 bash
  python -m deploy.lab power-cut hv-02           then: boot hv-02
  python -m deploy.lab cut-link hv-01            then: restore-link hv-01
  python -m deploy.lab kill hv-01 libvirtd       then: start hv-01 libvirtd
  python -m deploy.lab down --name t1
"""

_FAULTS: dict[str, tuple[str, Callable[[Host], object]]] = {
    "power-cut": ("take the power of a host away", Host.power_cut),
    "boot": ("power a host on", Host.boot),
    "cut-link": ("pull a host's network cable", Host.cut_link),
    "restore-link": ("plug a host's network cable in again", Host.restore_link),
    "freeze": ("stop every process of a host", Host.freeze),
    "thaw": ("let a frozen host go on", Host.thaw),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.lab",
        description="Real libvirt hosts and a control plane in namespaces of this machine. Needs root.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--name", default="lab", help="the lab's name (default: lab)")
    which.add_argument("--dir", type=Path, help=f"its state directory (default: {state.HOME}/NAME)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    up = verbs.add_parser("up", parents=[which], help="make the lab, or repair what is missing")
    up.add_argument("--hosts", type=int, default=2, help="how many hosts (default: 2)")
    up.add_argument("--no-control", dest="control", action="store_false", help="no control plane, no agents")
    down = verbs.add_parser("down", parents=[which], help="end the lab and remove everything of it")
    down.add_argument("--keep", action="store_true", help="keep the disks for the next `up`")
    verbs.add_parser("status", parents=[which], help="show the hosts and what runs on them").add_argument(
        "--json", action="store_true", help="for programs"
    )
    verbs.add_parser("list", help="show every running lab of this machine")
    execute = verbs.add_parser("exec", parents=[which], help="run a command on a host, or on `control`")
    execute.add_argument("host")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    for verb, (text, _) in _FAULTS.items():
        verbs.add_parser(verb, parents=[which], help=text).add_argument("host")
    for verb, text in (("kill", "kill a daemon of a host"), ("start", "start a daemon of a host")):
        daemon = verbs.add_parser(verb, parents=[which], help=text)
        daemon.add_argument("host")
        daemon.add_argument("daemon", choices=("libvirtd", "agent"))
        if verb == "kill":
            daemon.add_argument("--signal", default="KILL", help="TERM, STOP ... (default: KILL)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    match arguments.verb:
        case "up":
            Lab(arguments.name, arguments.dir, say=_say).up(arguments.hosts, control=arguments.control)
        case "down":
            _lab_to_end(arguments).down(keep=arguments.keep)
        case "list":
            for name, directory in sorted(running_labs()):
                print(f"{name:<20} {directory}")
        case "status":
            _print_status(_attach(arguments), as_json=arguments.json)
        case "exec":
            _execute(_attach(arguments), arguments.host, arguments.command)
        case "kill":
            _attach(arguments).host(arguments.host).kill(arguments.daemon, _signal_number(arguments.signal))
        case "start":
            _attach(arguments).host(arguments.host).start(arguments.daemon)
        case fault:
            _FAULTS[fault][1](_attach(arguments).host(arguments.host))


def _say(line: str) -> None:
    print(line, flush=True)


def _attach(arguments: argparse.Namespace) -> Lab:
    return Lab.attach(arguments.name, arguments.dir, say=_say)


def _lab_to_end(arguments: argparse.Namespace) -> Lab:
    """A lab that cannot be attached to may still have leftovers to end."""
    if arguments.dir is None and any(name == arguments.name for name, _ in running_labs()):
        return _attach(arguments)
    return Lab(arguments.name, arguments.dir, say=_say)


def _signal_number(name: str) -> int:
    try:
        return signal.Signals[f"SIG{name.removeprefix('SIG')}"]
    except KeyError:
        raise LabError(f"no signal {name!r}", "for example TERM, KILL, STOP, CONT") from None


def _print_status(lab: Lab, *, as_json: bool) -> None:
    hosts = [host.status() for host in lab.hosts]
    if as_json:
        print(msgspec.json.encode({"lab": lab.state(), "hosts": hosts}).decode())
        return
    phase = lab.state().phase
    unfinished = " (an `up` is at work or was interrupted)" if phase == "changing" else ""
    print(f"lab {lab.name} in {lab.directory}{unfinished}")
    print(f"control   {'on' if lab.control.is_on() else 'off':<7} {', '.join(sorted(lab.control.container.daemons()))}")
    for host in hosts:
        cable = "" if host.cable else "  cable cut" if host.power != "off" else ""
        guests = f"  guests: {', '.join(host.guests)}" if host.guests else ""
        print(f"{host.name:<9} {host.power:<7} {host.address:<12} {', '.join(host.daemons)}{cable}{guests}")
        print(f"          {host.uri}")


def _execute(lab: Lab, name: str, command: list[str]) -> None:
    """Become the command, so that a terminal, signals and the exit code are its own."""
    if not command:
        raise LabError("no command", "for example: exec hv-01 virsh list")
    container = lab.control.container if name == "control" else lab.host(name).container
    if container.is_frozen():
        raise LabError(f"{name} is frozen", f"thaw it: python -m deploy.lab thaw {name}")
    sys.stdout.flush()
    os.execvp("nsenter", ["nsenter", "-t", str(container.pid()), "-m", "-u", "-i", "-n", "-p", "--", *command])


def main() -> int:
    arguments = _parser().parse_args()
    try:
        prerequisites.require_root()
        _run(arguments)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: `up` repairs what is unfinished, `down` removes it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
