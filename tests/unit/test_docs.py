"""What the documentation quotes stands in the code."""

import re
from pathlib import Path

import pytest

from rlhf_kit.objectives.preference import LOSSES
from rlhf_kit.training.algorithms import ALGORITHMS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "algorithms").glob("*.md"))
QUOTE = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_quoted_lines_are_the_codes_own(page):
    quotes = QUOTE.findall(page.read_text())
    assert len(quotes) == page.read_text().count("```python") > 0
    for path, lines in quotes:
        assert lines in (ROOT / path).read_text(), f"{page.name} quotes what {path} no longer says:\n{lines}"


def test_every_algorithm_and_loss_has_its_line():
    online, offline = ((ROOT / "docs" / "algorithms" / f"{name}.md").read_text() for name in ("online", "offline"))
    assert [name for name in ALGORITHMS if f"| `{name}` |" not in online] == []
    assert [name for name in LOSSES if f"| `{name}` |" not in offline] == []


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_test_that_the_page_on_parity_names_exists():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests" / "parity").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "parity.md").read_text())
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in tests] == []
