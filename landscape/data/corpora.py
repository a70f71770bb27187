"""Two corpora that every Python carries: the language reference as prose, the standard library as code."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from landscape.errors import InputError

NAMES = ("docs", "code")
PARTS = ("train", "heldout")
_PIECE_CHARACTERS = 4000  # of a built-in corpus: the unit that is held out whole
_CODE_PACKAGES = (
    *("asyncio", "collections", "concurrent", "email", "http", "importlib"),
    *("json", "logging", "multiprocessing", "unittest", "urllib", "xml"),
)


def builtin_corpus(source: str, part: str) -> tuple[str, list[str]]:
    """Return the full name `builtin:NAME@PART` of a built-in corpus, and the pieces of text of that part.

    Args:
        source: `builtin:NAME`, or `builtin:NAME@PART`, which overrides `part`. NAME is "docs" or "code".
        part: "train" or "heldout". About a tenth of the pieces is held out, chosen by a fixed hash of their text.

    Raises:
        InputError: There is no such name or part.

    Example:
        >>> builtin_corpus("builtin:docs", "heldout")[0]
        'builtin:docs@heldout'
    """
    name, part = name_and_part(source, part)
    documents = {"docs": _language_reference, "code": _standard_library}[name]()
    pieces = [piece for piece in _pieces(documents) if _is_held_out(piece) == (part == "heldout")]
    return f"builtin:{name}@{part}", pieces


def name_and_part(source: str, part: str = "heldout") -> tuple[str, str]:
    """Return the name of a built-in corpus and the part of it that a source names, see `builtin_corpus`.

    Raises:
        InputError: There is no such name or part.
    """
    name, _, suffix = source.removeprefix("builtin:").partition("@")
    part = suffix or part
    if name not in NAMES or part not in PARTS:
        raise InputError(f"there is no builtin:{name}@{part}; there are docs and code, @train and @heldout.")
    return name, part


def _is_held_out(piece: str) -> bool:
    """Whether a piece is in the held-out part, by a hash of its text."""
    return hashlib.sha256(piece.encode()).digest()[0] < 26  # 26 of 256: about a tenth


def _pieces(documents: Iterable[str]) -> list[str]:
    """Cut documents at blank lines into pieces of about 4000 characters, with each paragraph kept once.

    Sections of the language reference appear in several topics: without this, a quarter of the held-out text
    would stand word for word in the training part.
    """
    pieces: list[str] = []
    seen: set[str] = set()
    for document in documents:
        piece = ""
        for paragraph in re.split(r"(?<=\n\n)(?!\n)", document):
            key = paragraph.strip()
            if key and key not in seen:
                seen.add(key)
                if piece and len(piece) + len(paragraph) > _PIECE_CHARACTERS:
                    pieces.append(piece)
                    piece = ""
                piece += paragraph
        if piece:
            pieces.append(piece)
    return pieces


def _language_reference() -> list[str]:
    """Return the topics of Python's language reference, in the order of their names."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _standard_library() -> list[str]:
    """Return the source of the standard library's modules, without tests, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    installed = ("_sysconfigdata", "sitecustomize")  # written by whoever built or packaged this Python
    modules = [path for path in root.glob("*.py") if not path.name.startswith(installed)]
    for package in _CODE_PACKAGES:
        modules += (root / package).rglob("*.py")
    names = sorted(module.relative_to(root) for module in modules)
    return [(root / name).read_text("utf-8") for name in names if not {"test", "tests"} & set(name.parts)]
