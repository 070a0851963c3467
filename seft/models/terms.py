"""The terms of use of a model: its licence, its language, and the files with terms that go with a copy of it.

They are read from the front matter of its card with patterns, not with a YAML parser: the card is a file of a stranger.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from seft.config import is_notice
from seft.models.limits import MAX_FILE_BYTES
from seft.models.model_files import CARD, front_matter

MAX_NOTICES, MAX_LANGUAGES = 10, 50
_NAME = re.compile(r"^license_name: *[\"']?([\w.-][\w. -]{0,99}?)[\"']? *$", re.MULTILINE | re.ASCII)
_LINK = re.compile(r"^license_link: *[\"']?([\w./:%#~+-]{1,300})[\"']? *$", re.MULTILINE | re.ASCII)
_LANGUAGE = re.compile(r"^language: *\[?([\w ,'\"-]*)\]?((?:\n *- *[\w'\"-]+)*)", re.MULTILINE | re.ASCII)
_CODE = re.compile(r"[A-Za-z]{2,12}")


class Terms(NamedTuple):
    """What the card of a model says besides the licence: its name and link if it is a special one, and languages."""

    licence_name: str | None = None
    licence_link: str | None = None
    languages: tuple[str, ...] = ()


NO_TERMS = Terms()


def terms_files(sizes: Mapping[str, int]) -> list[str]:
    """Return the names of a model's card and of the files with terms of use. `sizes` are the bytes of all its files."""
    names = [*sorted(name for name in sizes if is_notice(name))[:MAX_NOTICES], CARD]
    return [name for name in names if 0 < sizes.get(name, 0) <= MAX_FILE_BYTES]


def notices(path: Path) -> list[Path]:
    """Return the files with terms of use in the folder of a model. A GGUF file has none."""
    if not path.is_dir():
        return []
    sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
    return [path / name for name in terms_files(sizes) if name != CARD]


def read_terms(path: Path) -> Terms:
    """Return what the card in the folder of a model says about its terms. A GGUF file has no card."""
    card = path / CARD
    if not card.is_file() or card.stat().st_size > MAX_FILE_BYTES:
        return NO_TERMS
    head = front_matter(card.read_bytes().decode("utf-8", errors="replace"))
    name, link, language = (pattern.search(head) for pattern in (_NAME, _LINK, _LANGUAGE))
    codes = _CODE.findall(f"{language[1]} {language[2]}") if language else []
    return Terms(name[1] if name else None, link[1] if link else None, tuple(dict.fromkeys(codes))[:MAX_LANGUAGES])
