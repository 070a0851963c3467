"""`python -m tests.seft.models.config_keys` writes the keys of a config that a model of transformers reads.

These are the fields of the configurations of all causal language models, and every text by which their code, or code
that all models share, may look for a key. The code is parsed and not run.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import transformers

ROOT = Path(__file__).parents[3]
LIBRARY = Path(transformers.__file__).parent
DOCSTRING = '''"""Lists the keys of config.json that a causal language model of transformers reads.

`python -m tests.seft.models.config_keys` makes this file. A test compares it with the installed transformers.
"""
'''
SHARED = ("modeling_rope_utils.py", "masking_utils.py", "cache_utils.py")
GENERAL = frozenset(
    {
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "model_type",
        "pad_token_id",
        "text_config",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Keys that every configuration has. The base class has more fields, which name code, devices or other files."""
REFUSED = re.compile(r".*(implementation|auto_map|name_or_path|quantization|trust).*|.*(Config|_plan|_file)")
"""Names that are not keys of a model, although its code mentions them."""
_KEY = re.compile(r"_?[A-Za-z][A-Za-z0-9_]*")


def known_keys() -> frozenset[str]:
    """Return all keys, as the installed version of transformers reads them."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    folders = {LIBRARY / "models" / model_type_to_module_name(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    files = [LIBRARY / name for name in SHARED]
    files += [file for folder in folders for file in folder.glob("configuration_*.py")]
    keys = {key for file in files for key in _mentioned(ast.parse(file.read_text()))}
    modeling = [file for folder in folders for file in folder.glob("modeling_*.py")]
    keys |= {key for file in modeling for key in _asked(ast.parse(file.read_text()))}
    return GENERAL | {key for key in keys if _KEY.fullmatch(key) and not REFUSED.fullmatch(key)}


def _mentioned(tree: ast.Module) -> Iterator[str]:
    """Yield the names of annotated fields, of parameters and of attributes that are set, and all short texts."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store())
            ):
                yield name
            case ast.Constant(value=str() as text) if len(text) < 50 and not text.startswith("_"):
                yield text


def _asked(tree: ast.Module) -> Iterator[str]:
    """Yield the names of attributes that `getattr` or `hasattr` asks a configuration for."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[owner, ast.Constant(value=str() as name), *_]):
                if "config" in ast.unparse(owner):
                    yield name


def source() -> str:
    """Return the content of `seft/models/config_keys.py`."""
    keys = textwrap.fill(" ".join(sorted(known_keys())), 118, break_on_hyphens=False)
    return f'{DOCSTRING}\n_KEYS = """\n{keys}\n"""\nCONFIG_KEYS = frozenset(_KEYS.split())\n'


if __name__ == "__main__":
    (ROOT / "seft" / "models" / "config_keys.py").write_text(source())
