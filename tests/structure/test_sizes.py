"""Files and functions stay short, so that each has one idea."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("api", "benchmarks", "core", "local", "seft", "tests", "worker")
FILE_LINES, FUNCTION_LINES = 400, 60
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_and_no_function_is_too_long(folder: str) -> None:
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] == folder]
    assert files
    long_files = {str(path): lines for path in files if (lines := path.read_text().count("\n")) > FILE_LINES}
    long_functions = {
        f"{path}:{name}": lines for path in files for name, lines in functions(path) if lines > FUNCTION_LINES
    }
    assert not long_files, f"split by topic: more than {FILE_LINES} lines"
    assert not long_functions, f"split by topic: more than {FUNCTION_LINES} lines"
