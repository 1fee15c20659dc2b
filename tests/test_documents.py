"""The code in README and docs runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "docs/differences.md"]


@pytest.mark.defaults
@pytest.mark.parametrize("name", DOCUMENTS)
def test_code_blocks_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All Python blocks of a document, one after the other, in one namespace."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {"__name__": name}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize("name", [*DOCUMENTS, "CONTRIBUTING.md", "docs/benchmarks.md"])
def test_links_lead_somewhere(name: str) -> None:
    """Every relative link of a document is a file of the repository."""
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
        assert ((ROOT / name).parent / target).exists(), target
