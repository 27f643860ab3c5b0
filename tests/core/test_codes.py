"""Every code that the program can answer with is explained in one place."""

import re
from pathlib import Path

from vmorch.core.codes import CODES, code_of

ROOT = Path(__file__).parents[2]
USED = re.compile(r"""(?:Rejected|Problem)\(\s*f?"([a-z]+(?:-[a-z]+)+)"|Failed\(\s*code="([a-z-]+)\"""")


def used() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in ("vmorch", "hostagent", "cli"):
        for path in (ROOT / package).rglob("*.py"):
            for match in USED.finditer(path.read_text()):
                found[match[1] or match[2]] = str(path.relative_to(ROOT))
    return found


def test_every_code_in_use_is_listed() -> None:
    found = used()
    assert len(found) > 40
    assert {code: path for code, path in found.items() if code not in CODES} == {}


def test_an_unlisted_code_counts_as_our_mistake() -> None:
    assert code_of("never-heard-of").exit == 1
