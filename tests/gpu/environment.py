"""`python -m tests.gpu.environment WHEELS FOLDER`: make the environment in which `make gpu` runs, without network.

It is a virtual environment with the packages of the wheels. All other packages, such as torch, are those of the Python
that runs this program. That Python may be in a virtual environment itself, whose packages `--system-site-packages`
would not find. So a file in the new environment names the folders of its packages. This program needs only the standard
library and pip.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.gpu.parts import ENVIRONMENT_SECONDS

ROOT = Path(__file__).parents[2]
FOLDERS = """
import json, site, sysconfig
print(json.dumps([sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"], *site.getsitepackages()]))
"""


def main(wheels: Path, folder: Path) -> None:
    """Make the environment, with the checkout on its path. Ends with an error if there are no wheels."""
    files = sorted(wheels.resolve().glob("*.whl"))
    if not files:
        sys.exit(
            f"{wheels} must contain the wheels that `make wheels` collects; it has none. Run that command on a"
            " machine with internet access and copy the folder, or name it: make gpu WHEELS=FOLDER"
        )
    if find_spec("pip") is None:
        sys.exit(f"{sys.executable} must have pip; it has not. Install it, or name another Python: make gpu PYTHON=…")
    create(files, folder)


def create(files: list[Path], folder: Path) -> None:
    """Create the environment with these wheels."""
    folder = folder.resolve()
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    inherited = _folders(Path(sys.executable))
    (own,) = set(_folders(python)) & {str(path) for path in folder.glob("lib/python*/site-packages")}
    # The lines are read after the folder itself, so its own packages come first.
    lines = [str(ROOT), *(f"import site; site.addsitedir({each!r})" for each in dict.fromkeys(inherited))]
    Path(own, "image.pth").write_text("\n".join(lines) + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    command = [*install, "--no-cache-dir", "--disable-pip-version-check", *map(str, files)]
    if subprocess.run(command, check=False, timeout=ENVIRONMENT_SECONDS).returncode:
        sys.exit(f"The wheels must be for Python {sys.version_info.major}.{sys.version_info.minor}; see above.")


def _folders(python: Path) -> list[str]:
    answer = subprocess.run([python, "-c", FOLDERS], capture_output=True, text=True, check=True).stdout
    folders: list[str] = json.loads(answer)
    return folders


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
