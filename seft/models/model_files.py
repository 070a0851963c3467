"""The files of a model that may be read, and the checks of its configuration. Needs no weights and no torch.

A folder or a repository may hold anything. Only the files whose names are here reach a loader. So a file that a loader
would act on, such as `adapter_config.json`, has no effect.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from seft.errors import SourceError
from seft.models.hub_files import NOT_FOUND, REFUSED
from seft.models.limits import MAX_FILE_BYTES, MAX_WEIGHT_FILES, parse_json
from seft.storable import UNSTORABLE

CONFIG, TOKENIZER_CONFIG, SPECIAL_TOKENS = "config.json", "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER, CARD, GENERATION_CONFIG = "tokenizer.json", "README.md", "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXT_FILES = frozenset(
    {
        CONFIG,
        GENERATION_CONFIG,
        TOKENIZER,
        TOKENIZER_CONFIG,
        SPECIAL_TOKENS,
        "added_tokens.json",
        "vocab.json",
        CHAT_TEMPLATE,
        INDEX,
    }
)
"""Names of the files without weights that a loader may read."""
_WEIGHTS = re.compile(r"model[\w.-]{0,100}\.safetensors", re.ASCII)
_NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)
_FRONT_MATTER = re.compile(r"---\n.*?\n---", re.DOTALL)
_LICENCE = re.compile(r"^license: *[\"']?([\w.-]+)", re.MULTILINE)
_DECODER_SUFFIXES = ("ForCausalLM", "LMHeadModel")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_REJECTED_KEYS = {
    "auto_map": "names Python code to run while loading. If transformers supports the model without this code, remove"
    " the key from a copy of the model. Otherwise choose a different model",
    "sparsity_config": "can make loaders run code or skip weights. Save the model with plain dense weights",
    "quantization_config": "means that the weights are quantised. Use the unquantised model, or a GGUF file",
}
BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "block_count")
"""Names of the number of decoder blocks in a configuration."""
VOCABULARY_SIZE = "vocab_size"
_MAX_COUNTS = {**dict.fromkeys(BLOCK_COUNTS, 10_000), VOCABULARY_SIZE: 1 << 24}
_SHOWN = 5
"""Number of names that an error shows."""


def is_weights(name: str) -> bool:
    """Return whether a file with this name may hold weights."""
    return _WEIGHTS.fullmatch(name) is not None


def is_read(name: str) -> bool:
    """Return whether a loader may read a file with this name."""
    return name in TEXT_FILES or is_weights(name)


class ModelFiles(NamedTuple):
    """What the files of a model say, after all checks: config.json, the names of its weights, and its chat template."""

    config: dict[str, Any]
    weights: list[str]
    has_chat_template: bool


def read_model_files(reference: str, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> ModelFiles:
    """Check the files of a model without reading its weights. Raises SourceError if a check fails.

    `sizes` are the sizes of the model's files in bytes by name, and `read` returns the content of one.
    """
    if CONFIG not in sizes:
        raise SourceError(
            NOT_FOUND,
            f"a model must have a config.json; {reference!r} has no config.json. Name a model's folder or a GGUF file.",
        )
    config = _json_object(reference, CONFIG, sizes, read)
    _require_no_code(reference, CONFIG, config)
    has_chat_template = CHAT_TEMPLATE in sizes
    if TOKENIZER_CONFIG in sizes:
        tokenizer = _json_object(reference, TOKENIZER_CONFIG, sizes, read)
        _require_no_code(reference, TOKENIZER_CONFIG, tokenizer)
        has_chat_template = has_chat_template or bool(tokenizer.get("chat_template"))
    for values in (config, config.get("text_config")):
        if isinstance(values, dict):
            require_counts(reference, values)
    architectures = config.get("architectures")
    names = list(map(str, architectures)) if isinstance(architectures, list) else []
    if config.get("is_encoder_decoder") or not any(name.endswith(_DECODER_SUFFIXES) for name in names):
        raise not_decoder(reference, ", ".join(names[:_SHOWN])[:200] or "unnamed")
    require_names(reference, architectures=names, model_type=[str(config.get("model_type") or "none")])
    if TOKENIZER not in sizes:
        raise SourceError(
            REFUSED,
            f"a model must have a fast tokenizer; {reference!r} has no tokenizer.json. Write one with"
            " transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    return ModelFiles(config, weight_files(reference, sizes, read), has_chat_template)


def weight_files(reference: str, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> list[str]:
    """Return the names of the files with the weights of a model, sorted. Raises SourceError if one is missing.

    Transformers loads these files. If there is a single file, it ignores the index, which may be older.
    """
    if SINGLE in sizes:
        return [SINGLE]
    if INDEX in sizes:
        weight_map = _json_object(reference, INDEX, sizes, read).get("weight_map")
        shards = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
        missing = sorted(shards - {name for name in sizes if is_weights(name)})
        if not shards or missing:
            raise SourceError(
                REFUSED,
                f"a model must have all shards of its index; {reference!r} lacks shards:"
                f" {missing[:_SHOWN] or 'the index names none'}. Download or save the model again.",
            )
        if len(shards) > MAX_WEIGHT_FILES:
            raise SourceError(
                REFUSED,
                f"a model may have at most {MAX_WEIGHT_FILES} shards; {reference!r} has {len(shards)}."
                " Save it in larger shards.",
            )
        return sorted(shards)
    pickles = sorted(name for name in sizes if name.endswith(_PICKLE_SUFFIXES))[:_SHOWN]
    files = f"only pickles ({pickles}), which can run code" if pickles else "no model.safetensors"
    raise SourceError(
        REFUSED,
        f"a model must have safetensors weights; {reference!r} has {files}."
        " Save it with save_pretrained, which writes safetensors.",
    )


def require_size(reference: str, size: int, max_bytes: int) -> None:
    """Raise SourceError if the files of a model have more than `max_bytes` bytes together."""
    if size > max_bytes:
        raise SourceError(
            REFUSED,
            f"the tokenizer and the configuration of a model may have at most {max_bytes} bytes; in"
            f" {reference!r} they have {size}. Choose a different model.",
        )


def require_names(reference: str, **names: Iterable[str]) -> None:
    """Raise SourceError unless each value is a short name without special characters."""
    for field, values in names.items():
        for value in values:
            if not _NAME.fullmatch(value):
                raise SourceError(
                    REFUSED,
                    f"`{field}` of a model must be names of letters, digits, '_', '.' and '-';"
                    f" {reference!r} has {value[:100]!r}. Save the model again.",
                )


def require_counts(reference: str, values: Mapping[str, Any], most: Mapping[str, int] = _MAX_COUNTS) -> None:
    """Raise SourceError unless each value whose name is in `most` is null or an integer from 1 to `most[name]`.

    Without this check, a config can claim billions of layers, and a loader creates them before it reads weights.
    """
    for name, largest in most.items():
        value = values.get(name)
        if value is not None and not (type(value) is int and 0 < value <= largest):
            raise SourceError(
                REFUSED,
                f"`{name}` of a model must be an integer from 1 to {largest} here; {reference!r} has"
                f" {repr(value)[:20]}. Save the model again.",
            )


def require_storable(reference: str, name: str, text: str) -> None:
    """Raise SourceError if a text of a file contains NUL or half of a surrogate pair."""
    if UNSTORABLE.search(text):
        raise SourceError(
            REFUSED,
            f"no text in {name} of {reference!r} may contain NUL or half of a surrogate pair; {text[:100]!r} does."
            " Save the model again.",
        )


def not_decoder(reference: str, architecture: str) -> SourceError:
    """Return the error for a model that is not a decoder-only language model."""
    return SourceError(
        REFUSED,
        f"a model must be a decoder-only language model (…ForCausalLM); {reference!r} has the architecture"
        f" {architecture}. Choose a different model.",
    )


def card_licence(card: str) -> str | None:
    """Return the licence in the front matter of a model card, or None if it has none."""
    licence = _LICENCE.search(front_matter(card))
    return checked_licence(licence.group(1)) if licence else None


def front_matter(card: str) -> str:
    """Return the front matter of a model card, with plain line ends; an empty text if it has none."""
    head = _FRONT_MATTER.match(card.replace("\r\n", "\n").removeprefix("\ufeff"))
    return head.group() if head else ""


def checked_licence(value: object) -> str | None:
    """Return the name of a licence, or None if the value is not one."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def _json_object(reference: str, name: str, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> dict[str, Any]:
    if sizes[name] > MAX_FILE_BYTES:
        raise SourceError(
            REFUSED,
            f"{name} of a model may have at most {MAX_FILE_BYTES} bytes; in {reference!r} it has {sizes[name]}."
            " Choose a different model.",
        )
    try:
        value = parse_json(read(name))
    except (ValueError, RecursionError) as error:
        raise SourceError(REFUSED, f"{name} of {reference!r} is not JSON: {error}. Save the model again.") from error
    if not isinstance(value, dict):
        raise SourceError(REFUSED, f"{name} of {reference!r} is not a JSON object. Save the model again.")
    for text in _texts(value):
        require_storable(reference, name, text)
    return value


def _require_no_code(reference: str, name: str, value: dict[str, Any]) -> None:
    for key in _REJECTED_KEYS.keys() & {key for each in _objects(value) for key in each if each[key] is not None}:
        raise SourceError(REFUSED, f"{name} of {reference!r} has `{key}`, which {_REJECTED_KEYS[key]}.")


def _texts(value: Any) -> Iterator[str]:
    """Yield all keys and texts of nested JSON."""
    for each in _values(value):
        if isinstance(each, dict):
            yield from each
        elif isinstance(each, str):
            yield each


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects of nested JSON. A larger model's config may contain the config of its text model."""
    return (each for each in _values(value) if isinstance(each, dict))


def _values(value: Any) -> Iterator[Any]:
    pending = [value]
    while pending:
        yield (value := pending.pop())
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
