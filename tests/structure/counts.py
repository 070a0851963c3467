"""Count the entries of each package, and the imports between them: `python -m tests.structure.counts`.

An entry is a module or a folder directly in a package. Imports between two entries count once in each direction.
"""

import grimp

PACKAGES = ("api", "core", "local", "seft", "worker")


def count(graph: grimp.ImportGraph, package: str) -> tuple[int, int]:
    """Return the number of entries of a package and of imports between two of them."""
    modules = [name for name in graph.modules if name.startswith(f"{package}.")]
    imports = {
        (_entry(name), _entry(other))
        for name in modules
        for other in graph.find_modules_directly_imported_by(name)
        if other.startswith(f"{package}.") and _entry(name) != _entry(other)
    }
    return len(set(map(_entry, modules))), len(imports)


def _entry(module: str) -> str:
    return module.split(".")[1]


if __name__ == "__main__":
    imports = grimp.build_graph(*PACKAGES, cache_dir=None)
    for name in PACKAGES:
        entries, arrows = count(imports, name)
        print(f"{name}: {entries} entries, {arrows} imports between them")  # noqa: T201
