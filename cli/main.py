"""The `vmorch` command: the door through which a process comes in, and the only place that ends one.

Must import nothing before it has to: a process of the operator's lives for a moment, and most of it is imports.
"""

import gc
import os
import sys


def main() -> None:
    """Run this process's command line and end the process."""
    # what is made until the command runs stays until the end; looking through it again and again only takes time
    gc.disable()
    from cli.root import root, run
    from cli.session import Session

    if os.environ.get("_VMORCH_COMPLETE"):
        from cli.completion import answer

        answer(root)
    status = run(sys.argv[1:], Session())
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    # threads that still listen to a stream must not hold the process
    os._exit(status)


if __name__ == "__main__":
    main()
