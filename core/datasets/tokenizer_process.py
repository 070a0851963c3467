"""The process that reads a dataset with a tokenizer: `python -m core.datasets.tokenizer_process TOKENIZER PARENT`.

Tokenizers and chat templates come from other people. So this program first confines itself, then it executes
`seft.data.preview`. The confined process has no network. It can read only the files of the tokenizer and of the
programs. TOKENIZER is the tokenizer's folder, or a GGUF file in a folder of its own. The files of the folder may be
links, and the process may write to the folder.
"""

import os
import sys
from pathlib import Path

from core.infra import sandbox


def main(tokenizer: Path, parent: str) -> None:
    """Confine this process and execute the program that makes the preview."""
    folder = tokenizer.parent if tokenizer.is_file() else tokenizer
    files = [file.resolve() for file in folder.iterdir()]
    sandbox.confine([*sandbox.code(os.environ, ["seft"]), *files], listable=[sandbox.ROOT], writable=[folder.resolve()])
    variables = {**os.environ, **dict.fromkeys(("HOME", "HF_HOME", "TMPDIR"), str(folder))}
    os.execve(sys.executable, [sys.executable, "-P", "-m", "seft.data.preview", parent], variables)  # noqa: S606


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
