"""Documentation that cannot lag: the tree, the make targets, the links."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from seft.client import Client

ROOT = Path(__file__).parents[2]
IGNORED = (ROOT / ".gitignore").read_text().split()
TEXT = (ROOT / "README.md").read_text()


def ignored(path: Path) -> bool:
    return any(fnmatch(path.name, pattern.strip("/")) for pattern in [*IGNORED, ".git"])


PAGES = [page for page in sorted(ROOT.rglob("*.md")) if not any(map(ignored, [page, *page.relative_to(ROOT).parents]))]


def tree() -> dict[str, str]:
    """The README's tree: entry -> description."""
    block = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)
    assert block
    lines = [re.fullmatch(r"(\S+)\s{2,}(\S.*)", line) for line in block[1].splitlines()]
    assert all(lines), "every line of the tree is an entry, two spaces, and what it is"
    return {line[1].rstrip("/"): line[2] for line in lines if line}


def targets() -> dict[str, str]:
    """The Makefile's targets that `make help` shows."""
    return dict(re.findall(r"^([a-z]+):.*## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_tree_describes_every_entry_of_the_repository_and_no_other() -> None:
    assert set(tree()) == {path.name for path in ROOT.iterdir() if not ignored(path)}


def test_every_make_target_that_a_page_names_exists() -> None:
    for page in PAGES:
        named = re.findall(r"`make ([a-z]+)|^make ([a-z]+)", page.read_text(), re.MULTILINE)
        assert {a or b for a, b in named} <= set(targets()), page.name


def test_the_readme_names_the_targets_that_people_need() -> None:
    assert {"demo", "test", "up", "down", "check", "help"} <= set(re.findall(r"make ([a-z]+)", TEXT))


def test_the_python_example_calls_what_the_client_has() -> None:
    block = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert block
    compile(block[1], "README.md", "exec")
    assert set(re.findall(r"service\.(\w+)\(", block[1])) <= set(dir(Client))


def test_every_target_is_phony_and_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == set(targets())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_relative_link_is_broken(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken
