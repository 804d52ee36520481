"""Repair of text that was decoded with the wrong encoding more than once.

The embedded tweets went through "UTF-8 read as Windows-1252, saved as Mac Roman" two or three times,
and each time a character that Mac Roman lacks became ``_``. Undoing it: read as Mac Roman, write as
Windows-1252, as often as it takes to reach valid UTF-8.
"""

from __future__ import annotations

import re

# Frequent runs that lost a byte for good; the meaning is clear from where they stand.
_KNOWN: dict[bytes, str] = {
    b"\xe4\xf3\x9d": "\u201d",
    b"\x8a\x97\x9d": "\u201d",
    b"\xd5\xa2_\x8a\xce\x81\xd0": "\u201c",
    b"\xd5\xa2_\x8a\xce\xeb\x9d": "\u201d",
    b"\xd5\xa2_\x8a\xce_\x86\xa2": "\u2019",
    b"\xd5\xa2_\x8a\xce\xeb_": "\u2026",
    b"\xd5\xa2_\x8a\xce_\xd1\x9d": "\u2014",
    b"\xd5\xa2_\x8a\xce_\xd1\xd2": "\u2013",
    b"\x8a\x93_\xb4\xd9\x8f": "\u2764",
    b"\x8a\x9d_\xb4\xd9\x8f": "\u2764",
    b"\xe4\xf3\xbb_\xe4\xf3\xbb_\xe4\xf3\xbb\x81\xcd": "\u201c",
    b"\xe4\xf3\xbb_\xe4\xf3\xbb_\xed_\x8c\x9d": "\u201d",
    b"\xe4\xf3\xbb_\xe4\xf3\xbb_\xed_\x81_": "\u2019",
    b"\xe4\xf3\xbb_\xe4\xf3\xbb_\xe4\xf3\xbb\x8c\xb1": "\u2026",
}
_FOUND = re.compile(b"|".join(re.escape(key) for key in sorted(_KNOWN, key=len, reverse=True)))
_RUN = re.compile(rb"_*[\x80-\xff][\x80-\xff_]*")
_PLAUSIBLE = re.compile("[ -~\u00a0-\u024f\u2000-\u2bff\ufe0f\U0001f000-\U0001faff]*")


def repair(raw: bytes) -> str:
    """Decode ``raw``: ASCII as it is, garbled runs repaired where they can be, else one space."""
    known = _FOUND.sub(lambda found: _KNOWN[found.group()].encode("utf-8"), raw)
    spared = {text.encode("utf-8") for text in _KNOWN.values()}
    return _RUN.sub(lambda run: _repair_run(run.group(), spared), known).decode("utf-8")


def _repair_run(run: bytes, spared: set[bytes]) -> bytes:
    parts = re.split(b"(" + b"|".join(sorted(spared)) + b")", run)
    return b"".join(part if part in spared else _undo(part) for part in parts)


def _undo(run: bytes) -> bytes:
    if run.strip(b"_") == b"":
        return run
    step = run
    for rounds in range(1, 4):
        try:
            step = step.decode("mac_roman").encode("cp1252")
        except UnicodeEncodeError:
            break
        if rounds < 2:
            continue
        # The bytes that most often became "_": the first of an emoji, the last of an ellipsis.
        whole = re.sub(rb"_(?=\x9f)", b"\xf0", step).replace(b"\xe2\x80_", b"\xe2\x80\xa6")
        try:
            text = whole.decode("utf-8")
        except UnicodeDecodeError:
            continue
        # A "_" that is left stands for a lost character: not understood, except next to an emoji.
        if _PLAUSIBLE.fullmatch(text) and (
            "_" not in text or min(text.replace("_", "")) > "\uffff"
        ):
            return whole
    return b" "
