"""`vmorch-agent` where the agent's libraries are not installed."""

import pytest

from hostagent import entry


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "NEEDED", ("sys", "no_such_library"))
    with pytest.raises(SystemExit, match=r"no_such_library missing\nhint: pip install 'vmorch\[agent\]'"):
        entry.main()
