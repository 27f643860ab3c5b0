"""Writes what old logs come to, after a change of what is shown that is meant.

python -m tests.golden.states [FILE...]
"""

import sys

from tests.core.test_old_shapes import FILES, STATES, as_text, records, state


def main(names: list[str]) -> None:
    """Write the states of these logs, of all without a name."""
    STATES.mkdir(exist_ok=True)
    for path in FILES:
        if not names or path.name in names:
            (STATES / path.name).write_text(as_text(state(records(path))))


if __name__ == "__main__":
    main(sys.argv[1:])
