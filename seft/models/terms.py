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
_CODE = re.compile(r"[a-z]{2,3}|code|multilingual")
"""The entries of a language that the hub accepts: a code of ISO 639 in lower case, or one of two words."""
_LICENCES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openmdw-1.1 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other
"""
KNOWN_LICENCES = frozenset(_LICENCES.split())
"""The names of licences that the hub accepts (https://huggingface.co/docs/hub/repositories-licenses)."""


class Terms(NamedTuple):
    """What the card of a model says besides the licence: the name and link of a special licence, and the languages."""

    licence_name: str | None = None
    licence_link: str | None = None
    languages: tuple[str, ...] = ()


NO_TERMS = Terms()


def terms_files(sizes: Mapping[str, int]) -> list[str]:
    """Return the names of a model's card and of its files with terms of use. `sizes` has the size of every file."""
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
    entries = re.split(r"[\s,'\"]+", f"{language[1]} {language[2]}") if language else []
    codes = dict.fromkeys(entry for entry in entries if _CODE.fullmatch(entry))
    return Terms(name[1] if name else None, link[1] if link else None, tuple(codes)[:MAX_LANGUAGES])
