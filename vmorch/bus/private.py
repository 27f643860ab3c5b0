"""Files that only their owner may read: keys, credentials, secrets. The one way to write them.

Must not read them: what is in there is its owner's to interpret.
"""

import os
import tempfile
from pathlib import Path


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Put `data` at `path`, readable by its owner alone; after a crash either all of it is there or none.

    Without `replace` an existing file stays: raises FileExistsError.
    """
    # mkstemp makes the file 0600
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            # a link, unlike a rename, refuses to replace what is there
            os.link(temporary, path)
            os.unlink(temporary)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
