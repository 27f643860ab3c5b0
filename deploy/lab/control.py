"""The one supervising process of the control namespace: Postgres, then NATS, then the server.

Run as `python -m deploy.lab.control --config FILE`. Ends when it is told to (SIGTERM) or when one of the three ends,
taking the others with it: half a control plane would only hide what broke. It restarts nothing.
"""

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from vmorch.embedded import EmbeddedError, EmbeddedNats, EmbeddedPostgres

_STOP_SECONDS = 30.0


def supervise(config: Path) -> int:
    """Run the control plane of one configuration file; the exit code is 0 only if it was told to end."""
    settings = tomllib.loads(config.read_text())
    data_dir = Path(settings["server"]["data_dir"])
    with (
        _told_to_end() as told,
        EmbeddedPostgres(config.parent / "postgres") as postgres,
    ):
        subprocess.run(_server_argv("init", config), check=True)
        with (
            EmbeddedNats(data_dir / "nats", Path(settings["nats"]["config_file"])) as nats,
            _running_server(config) as server,
        ):
            ended = _first_to_end({"Postgres": postgres.pid, "NATS": nats.pid, "the server": server}, told)
    if ended is None:
        return 0
    print(f"{ended} ended by itself: the control plane is down", file=sys.stderr)
    return 1


def _server_argv(verb: str, config: Path) -> list[str]:
    return [sys.executable, "-m", "vmorch.main", verb, "--config", str(config)]


@contextlib.contextmanager
def _told_to_end() -> Iterator[int]:
    """A descriptor that becomes readable once SIGTERM or SIGINT came, also while something else was going on."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    yield readable


@contextlib.contextmanager
def _running_server(config: Path) -> Iterator[int]:
    process = subprocess.Popen(_server_argv("run", config))
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _first_to_end(processes: dict[str, int], told: int) -> str | None:
    """Wait; the name of the process that ended, or None if we are told to end."""
    handles = {os.pidfd_open(pid): name for name, pid in processes.items()}
    ready, _, _ = select.select([told, *handles], [], [])
    return None if told in ready else handles[ready[0]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.lab.control", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the server's configuration")
    try:
        return supervise(parser.parse_args().config)
    except (EmbeddedError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
