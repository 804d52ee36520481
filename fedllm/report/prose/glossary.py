"""The report's words, explained to a reader who signs it and is no mathematician."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Differential privacy",
        "A property of the way a result is made: whether one record was among the data or not changes "
        "the chance of every possible result by little. How little is said by epsilon and delta. It "
        "holds whatever else the adversary knows, and however the result is used later.",
    ),
    (
        "Epsilon",
        "How far those chances may lie apart: by a factor of e to the power of epsilon (2.72 for "
        "epsilon = 1, 20.1 for epsilon = 3). Smaller is more private; 0 is perfect, infinite is none.",
    ),
    (
        "Delta",
        "How much may fall outside of that factor: a probability, to be far below one over the number "
        "of records. Every epsilon belongs to a delta; the same mechanism has many such pairs.",
    ),
    (
        "Privacy unit",
        "What one record is, whose presence is hidden: one training example, or all data of one silo "
        "(client). A person with several records has less protection than the number says.",
    ),
    (
        "Neighbouring relation",
        "Which two sets of data must look alike: with the unit and with an empty one in its place, the "
        "number of units being public (zero-out); with and without the unit, where nobody learns how many "
        "there are (add-or-remove-one); or with the unit exchanged for another (replace-one). An empty record "
        "contributes nothing to anything that is released. Zero-out and add-or-remove-one have the same "
        "epsilon; that of replace-one does not compare with it.",
    ),
    (
        "Adversary",
        "Against whom the number holds: an outsider sees the released model only; the server sees "
        "every message; colluding:m sees every message and controls m of the other silos. With secure aggregation sum-only is a "
        "server that learns sums over the silos alone, and sum-only:m controls m of the other silos as well.",
    ),
    (
        "Silo",
        "An organisation that takes part with data that stays on its own machines.",
    ),
    (
        "Event",
        "One use of private data by a mechanism, such as one training step: a random sample of the "
        "records, each record's influence cut to a fixed size (clipping), and Gaussian noise on the "
        "sum. The noise multiplier is the noise's standard deviation over that size; the sampling rate "
        "is each record's probability to be in the sample.",
    ),
    (
        "Ledger",
        "The list of all events, written before anything is released. Each row carries a hash over "
        "the row before it, so that a row that was changed or taken away shows.",
    ),
    (
        "Accountant",
        "A method to compute what all events together cost. An upper bound is a proof: the true "
        "epsilon is no larger. An approximation may be too small; it is shown for comparison and "
        "guarantees nothing.",
    ),
    (
        "Mu, and the trade-off function",
        "Another way to state the same guarantee: to tell whether a record was used is at least as hard "
        "as to tell two bell curves apart that lie mu standard deviations from each other. The trade-off "
        "function says for each rate of false alarms how many used records are missed at the least.",
    ),
)

_SUBJECTS = {"example": "one given training example", "client": "the data of one given silo"}


def plain_words(content: Mapping[str, Any]) -> str | None:
    """Explain the guarantee for a test of a record; None if there is no guarantee."""
    guarantee, found = content["guarantee"], content["meaning"]
    if found is None:
        return None
    alarms = found["false_alarms"]
    most = min(100.0, ceil(1000 * (1 - found["missed"]) - 1e-9) / 10)
    subject = _SUBJECTS[guarantee["unit"]]
    who = {
        "outsider": "Somebody who sees the released model",
        "server": "Somebody who sees every message of the training",
        "sum-only": "A server that learns sums over the silos alone",
    }.get(found["adversary"].partition(":")[0], "The adversary")
    limit = {
        "conditional": ", and does not know the seed of the noise,",
        "outsider-only": " and nothing else",
        "sum-only": ", as far as the masks hide all but their sum,",
        "if-fixed": ", where what was released was fixed beforehand,",
    }.get(guarantee["level"], "")
    source = (
        "as far as the seeded generator is as good as true randomness"
        if guarantee["level"] == "conditional"
        else "for anybody who cannot break the cipher that the noise comes from"
    )
    recognises = f"recognises at most {most:g}%"
    if most >= 100:
        recognises = "may recognise (as far as is proven) 100%"
    if content.get("vouching") is not None:
        source += ", as far as what the silos vouch for is true"
    return (
        f"{who}{limit} and tries to tell whether {subject} was used in the training, and who raises a "
        f"false alarm in {alarms:.0%} of the cases in which it was not, {recognises} of the cases in which it was. By "
        f"guessing alone it would be {alarms:.0%}. This holds whatever else is known about the data, {source}."
    )
