"""From bytes to text: strict, UTF-16 and UTF-32 by their mark, and which encoding a file is likely to have.

What is decided for a whole file depends on its first bytes and on the settings alone, never on a record's values.
"""

from __future__ import annotations

import codecs
import re

from fedllm.data.formats.records import DataError

_MARKS = (  # the longer ones first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8 = {"utf-8", "utf_8", "utf8", "utf-8-sig", "utf_8_sig", "u8"}
_HIGH = re.compile(rb"[\x80-\xff]+")
_OTHERS = ("cp1251", "gb18030", "shift_jis", "euc_kr", "big5")
_SAMPLE = 1 << 20


def decode_text(raw: bytes, encoding: str, name: str, *, mark_bad: bool = False) -> str:
    """Decode a file, without a byte order mark.

    UTF-16 and UTF-32 are known by their mark where ``encoding`` is UTF-8 (their marks are no UTF-8).

    Args:
        mark_bad: UTF-8 alone: each byte that cannot be decoded becomes a lone surrogate, so
            that the row that holds it can be told from the others.

    Raises:
        DataError: an unknown encoding; bytes that are no text in it, with their line and the encoding
            that they are likely to have.
    """
    marked = next((kind for mark, kind in _MARKS if raw.startswith(mark)), None)
    utf8 = encoding.lower() in _UTF8
    used = marked if marked is not None and utf8 else encoding
    if used == encoding and utf8 and (without := _unmarked(raw)) is not None:
        raise DataError(
            f"Expected text in data.encoding={encoding} in {name}, got a zero byte in each of the first "
            f'characters; data.encoding="{without}" is likely'
        )
    try:
        text = raw.decode(
            used, "surrogateescape" if mark_bad and utf8 and used == encoding else "strict"
        )
    except LookupError as error:
        raise DataError(
            f"Expected a known text encoding for {name}, got data.encoding={encoding}"
        ) from error
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = raw.count(b"\n", 0, start) + 1
        raise DataError(
            f"Expected text in data.encoding={used} in {name}, got bytes {raw[start : start + 4]!r} in line "
            f"{line}; {_advice(raw)}"
        ) from error
    return text.removeprefix("\ufeff")


def _unmarked(raw: bytes) -> str | None:
    """Detect UTF-16 without a mark by the zero bytes of the first two characters; None for anything else."""
    zeros = [byte == 0 for byte in raw[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else None


def _advice(raw: bytes) -> str:
    """Return the likely encoding of a file: a hint for people, never used for reading."""
    sample = raw[:_SAMPLE]
    if sample.decode("utf-8", "ignore").encode() != sample:
        bad = sample.decode("utf-8", "surrogateescape")
        broken = sum("\udc80" <= character <= "\udcff" for character in bad)
        whole = sum(character > "\x7f" for character in bad) - broken
        if whole > broken:
            return "the rest is UTF-8: mend that line"
    runs = _HIGH.findall(sample)
    if sum(map(len, runs)) < 1.8 * len(runs) and _decodes(raw, "cp1252"):
        return 'data.encoding="cp1252" is likely'
    known = [encoding for encoding in _OTHERS if _decodes(raw, encoding)]
    known += [encoding for encoding in ("cp1252",) if not known and _decodes(raw, encoding)]
    return f"data.encoding may be {' or '.join(known or ['latin-1'])}"


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeError:
        return False
    return True
