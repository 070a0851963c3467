"""The keys of a GGUF file about the tokenizer: tokens, merges or scores, special tokens and the chat template."""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from tokenizers import Tokenizer

from seft.config import FORMATS
from seft.errors import ConfigError
from seft.models.gguf_tokenizer import tokenizer_rules, unknown_tokenizer
from seft.models.model_files import TOKENIZER

_BYTE_TOKEN = 6
"""Length of a token for one byte in SentencePiece, such as <0x0A>."""


def add_tokenizer(writer: GGUFWriter, folder: Path, rows: int) -> None:
    """Add the tokenizer and the chat template of a model's folder to the keys of a GGUF file.

    The number of tokens in the file is `rows`, the number of rows of the embedding. Raises ConfigError if llama.cpp has
    no such tokenizer.
    """
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()  # the file may have the padding of a training, which does not belong to a text
    description = json.loads(tokenizer.to_str())
    rules = tokenizer_rules(description)
    names, types = _tokens(tokenizer, rows, sentencepiece=rules.is_sentencepiece)
    writer.add_tokenizer_model(rules.model)
    writer.add_tokenizer_pre(rules.split)
    writer.add_token_list(names)
    writer.add_token_types(types)
    if rules.is_sentencepiece:
        writer.add_token_scores(_scores(names, description["model"]["merges"]))
        writer.add_add_space_prefix(rules.adds_space)
    special = SpecialVocab(folder, load_merges=not rules.is_sentencepiece, n_vocab=rows)
    special.add_special_token = _added_ends(tokenizer, special.special_token_ids)
    special.add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: Tokenizer, rows: int, *, sentencepiece: bool) -> tuple[list[str], list[TokenType]]:
    """Return the text and the type of every token in the order of the ids. Rows without a token get an unused one."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if max(vocabulary.values()) >= rows:
        rule = f"may contain GGUF only if every token has one of the {rows} rows of the embedding"
        raise ConfigError(FORMATS, rule, max(vocabulary.values()), "Use the format dense.", lead="there is the token")
    names, types = [f"[PAD{number}]" for number in range(rows)], [TokenType.UNUSED] * rows
    for text, number in vocabulary.items():
        is_byte = sentencepiece and len(text) == _BYTE_TOKEN and text.startswith("<0x")
        names[number], types[number] = text, TokenType.BYTE if is_byte else TokenType.NORMAL
    for number, added in tokenizer.get_added_tokens_decoder().items():
        types[number] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    if sentencepiece and (unknown := tokenizer.model.unk_token) is not None:
        types[vocabulary[unknown]] = TokenType.UNKNOWN
    return names, types


def _scores(names: list[str], merges: list[Any]) -> list[float]:
    """Return the scores of SentencePiece, by which llama.cpp merges: the earlier a merge, the higher the score."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    return [-float(ranks.get(name, len(merges))) for name in names]


def _added_ends(tokenizer: Tokenizer, ids: dict[str, int]) -> dict[str, bool]:
    """Return whether the tokenizer adds the tokens `bos` and `eos` to a text, and set the ids of those that it adds."""
    bare, full = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
    start = next((at for at in range(len(full)) if bare and full[at : at + len(bare)] == bare), None)
    if start is None:
        raise unknown_tokenizer("a tokenizer that has tokens for the text 'a'", str(bare))
    ends = {"bos": full[:start], "eos": full[start + len(bare) :]}
    for name, added in ends.items():
        if len(added) > 1:
            raise unknown_tokenizer("a tokenizer that adds at most one token before and after a text", str(added))
        if added:
            ids[name] = added[0]
    return {name: bool(added) for name, added in ends.items()}
