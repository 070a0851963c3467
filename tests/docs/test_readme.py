"""Check that the documentation keeps up with the repository: the tree, the make targets, the links, the records."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from core.spec_parts import CPU_SETTINGS
from seft.client import Client

ROOT = Path(__file__).parents[2]
IGNORED = (ROOT / ".gitignore").read_text().split()
TEXT = (ROOT / "README.md").read_text()


def ignored(path: Path) -> bool:
    return any(fnmatch(path.name, pattern.strip("/")) for pattern in [*IGNORED, ".git"])


PAGES = [page for page in sorted(ROOT.rglob("*.md")) if not any(map(ignored, [page, *page.relative_to(ROOT).parents]))]
page_names = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def tree() -> dict[str, str]:
    """Return the README's tree: entry -> description."""
    block = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)
    assert block
    lines = [re.fullmatch(r"(\S+)\s{2,}(\S.*)", line) for line in block[1].splitlines()]
    assert all(lines), "every line of the tree is an entry, two spaces, and its description"
    return {line[1].rstrip("/"): line[2] for line in lines if line}


def targets() -> dict[str, str]:
    """Return the Makefile's targets that `make help` shows."""
    return dict(re.findall(r"^([a-z]+):.*## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tree_describes_every_entry_of_the_repository_and_no_other() -> None:
    assert set(tree()) == {path.name for path in ROOT.iterdir() if not ignored(path)}


def test_every_make_target_that_a_page_names_exists() -> None:
    for page in PAGES:
        matches = re.findall(r"`make ([a-z]+)|^make ([a-z]+)", page.read_text(), re.MULTILINE)
        assert {a or b for a, b in matches} <= set(targets()), page.name


def test_the_readme_names_the_targets_that_people_need() -> None:
    assert {"demo", "test", "up", "down", "check", "help"} <= set(re.findall(r"make ([a-z]+)", TEXT))


def test_the_python_example_calls_what_the_client_has() -> None:
    block = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert block
    compile(block[1], "README.md", "exec")
    assert set(re.findall(r"service\.(\w+)\(", block[1])) <= set(dir(Client))


def test_the_settings_for_a_cpu_are_those_of_the_demo_and_the_dashboard() -> None:
    block = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert block
    assert json.loads(block[1]) == CPU_SETTINGS


def test_every_target_is_phony_and_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == set(targets())


@page_names
def test_no_relative_link_is_broken(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", prose(page))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


@page_names
def test_every_link_to_a_heading_finds_it(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", prose(page))
    broken = [
        f"{path}#{anchor}" for path, anchor in links if anchor not in anchors(page.parent / path if path else page)
    ]
    assert not broken


def test_the_list_of_decision_records_has_every_record() -> None:
    folder = ROOT / "docs/adr"
    listed = re.findall(r"\]\((\d{4}-[a-z-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))
