"""Shows a loader only the files of a model, and the keys of its configuration, that describe a language model.

transformers also acts on other files and keys: `adapter_config.json` loads further weights, `attn_implementation`
downloads code, and `vocab_file` reads any file of the machine. This module leaves out everything that is not known to
be needed. A key that no configuration class knows has no effect on a model, so leaving it out changes nothing.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seft.errors import SourceError
from seft.models.config_keys import CONFIG_KEYS
from seft.models.hub_files import REFUSED
from seft.models.limits import MAX_FILE_BYTES
from seft.models.model_files import CONFIG, SPECIAL_TOKENS, TOKENIZER_CONFIG, is_read

TOKENIZER_KEYS = frozenset(
    {
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "added_tokens_decoder",
        "additional_special_tokens",
        "bos_token",
        "chat_template",
        "clean_up_tokenization_spaces",
        "cls_token",
        "do_lower_case",
        "eos_token",
        "errors",
        "extra_special_tokens",
        "legacy",
        "mask_token",
        "model_input_names",
        "model_max_length",
        "pad_token",
        "padding_side",
        "sep_token",
        "spaces_between_special_tokens",
        "split_special_tokens",
        "tokenizer_class",
        "truncation_side",
        "unk_token",
        "use_default_system_prompt",
    }
)
"""The keys of a tokenizer's configuration that are read. Their values never name a file."""


@contextmanager
def loadable(path: Path, within: Path | None = None) -> Iterator[Path]:
    """Yield a folder with the parts of a model that a loader may read. `path` is a folder or a GGUF file.

    The folder has links to the files, and reduced copies of the configurations. It is in `within`, or else among the
    temporary files of the system, and is deleted afterwards.
    """
    with TemporaryDirectory(prefix="seft-model-", dir=within) as name:
        folder = Path(name)
        if path.is_file():
            (folder / path.name).symlink_to(path.resolve())
        else:
            for file in path.iterdir():
                if is_read(file.name) and file.is_file():
                    _show(file, folder / file.name)
        yield folder


def _show(file: Path, shown: Path) -> None:
    if file.name == CONFIG:
        shown.write_text(json.dumps(_reduced_config(_object(file))))
    elif file.name in {TOKENIZER_CONFIG, SPECIAL_TOKENS}:
        shown.write_text(json.dumps({key: value for key, value in _object(file).items() if key in TOKENIZER_KEYS}))
    else:
        shown.symlink_to(file.resolve())


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes()) if file.stat().st_size <= MAX_FILE_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SourceError(
            REFUSED, f"{file.name} must be a JSON object of at most {MAX_FILE_BYTES} bytes. Save the model again."
        )
    return value


def _reduced_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known keys, also of configurations inside this one. Keys that are numbers are kept too."""
    return {
        key: _reduced_config(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key in CONFIG_KEYS or key.isdigit()
    }
