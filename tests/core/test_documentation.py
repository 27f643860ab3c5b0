"""The generated pages are what the registry says now."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def generator() -> dict[str, object]:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.PAGES)


@pytest.mark.parametrize("page", ["events.md", "codes.md", "asyncapi.json", "../cli/verbs.json"])
def test_a_generated_page_is_up_to_date(page: str) -> None:
    write = generator()[page]
    assert callable(write)
    assert (DOCS / page).read_text() == write(), "run: python docs/generate.py"
