"""Public text at the server: of no silo, written as the task's examples, without the evaluation's texts.

Guarantee: everything made of it alone is a function of public values; nothing here is released by a
silo, and no ledger is asked. That the text is public is the settings' word (``[public]``). What can be
checked is: a text that the server evaluates on is left out, and in a simulation text that is largely the
silos' own is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedllm.data.formats.hub import load_hub
from fedllm.data.formats.records import (
    DataError,
    Record,
    TextDataset,
    normalise_text,
    require_columns,
    require_text,
)
from fedllm.data.formats.sources import load_file
from fedllm.data.formats.tweets import load_tweets, normalise_tweet
from fedllm.data.holdout import split_holdout
from fedllm.data.labels import class_place
from fedllm.data.silos import Federation, first_by_hash, load_federation, validation_set
from fedllm.data.usable_rows import checked
from fedllm.settings.experiment import Settings
from fedllm.settings.flatness import PublicSettings
from fedllm.settings.sections import DataSettings, TaskSettings

MOST_SHARED = 0.1
"""Share of the public texts that may be texts of the silos too, before they are refused:
common short texts do occur in both; one file under both names is a mistake."""
EVALUATION_SHARE = 0.2
"""Share of the public text that the server evaluates on, where it has nothing else to evaluate on."""
Source = Literal["validation", "holdout", "public", "none"]


@dataclass(frozen=True)
class PublicData:
    """The public examples, and what was left out of what was read.

    Attributes:
        dataset: records with the columns ``task.text`` and ``task.target``.
        read: number of records read.
        other_classes: left out, since ``public.labels`` names no class of the task for theirs.
        in_evaluation: left out, since the server evaluates on the same text.
        in_silos: kept, but examples of a silo of the simulation too.
    """

    dataset: TextDataset
    read: int
    other_classes: int
    in_evaluation: int
    in_silos: int


def evaluation_source(data: DataSettings, public: PublicSettings) -> Source:
    """Return what the server's evaluation examples are taken from: ``validation`` (a file or split of its own),
    ``holdout`` (examples of the silos), ``public`` (a share of the text of ``[public]``) or ``none``."""
    if data.validation is not None:
        return "validation"
    if data.holdout > 0:
        return "holdout"
    return "none" if public.source == "none" else "public"


def evaluation_set(settings: Settings) -> TextDataset:
    """Return the server's own evaluation examples; empty where it has none (:func:`evaluation_source`).

    Those that cannot be used follow the silos' rule. Public text whose classes cannot be read as the task's gives none.

    Raises:
        DataError: as :func:`fedllm.data.silos.load_federation`, or as :func:`fedllm.data.usable_rows.checked`.
    """
    columns, most = settings.task.columns, settings.evaluation.max_examples
    source, none = (
        evaluation_source(settings.data, settings.public),
        TextDataset([], "no evaluation data", columns.names),
    )
    if source == "none":
        return none
    if source != "public":
        found = (
            validation_set(settings.data, columns, most, settings.seed)
            if source == "validation"
            else load_federation(settings).evaluation
        )
        return checked(found, columns, settings.data.bad_rows)
    try:
        found = _read(settings.public, settings.data)
        records, _ = _as_task(found, settings.public, settings.task, labelled=True)
    except (
        DataError
    ):  # text without classes serves other uses: load_public says what is wrong with it
        return none
    read = TextDataset(records, found.name, columns.names)
    judged = _judged_public(read, columns.text, settings.seed)
    return first_by_hash(judged, most, columns.text, settings.seed)


def _judged_public(public: TextDataset, text: Sequence[str], seed: int) -> TextDataset:
    """Return the public records that the server evaluates on: by a hash of the text, whatever their classes."""
    return split_holdout(public, EVALUATION_SHARE, seed, columns=text)[1]


def public_set(settings: Settings, *, labelled: bool = True) -> TextDataset:
    """Return the public examples of the section ``[public]``; see :func:`load_public`."""
    return load_public(settings, labelled=labelled).dataset


def load_public(settings: Settings, *, labelled: bool = True) -> PublicData:
    """Read the public text, name its columns and classes as the task does, and take out what is judged by.

    Texts are compared after :func:`fedllm.data.formats.records.normalise_text` (tweets: without retweet marks
    and links), with all of the server's evaluation texts, also those beyond
    ``evaluation.max_examples``. ``public.limit`` keeps the first by a hash of each text, so that the
    choice depends neither on the file's order nor on the other texts' number.

    With ``data.source = "tweets"`` and ``data.silo_names``, public tweets are those about others.

    Args:
        labelled: read the classes. Without (tasks with classes alone), every text is kept whatever its
            class, a class is not needed, and each record carries the first class as a filler that
            nothing may be learnt from.

    Raises:
        DataError: ``public.source`` is none; the data cannot be read; a column or class is unknown;
            nothing is left; or more than ``MOST_SHARED`` of it are the silos' own texts.
    """
    public, task = settings.public, settings.task
    if public.source == "none":
        raise DataError("Expected public.source: text that the server has, got public.source=none")
    labelled = labelled or not task.has_classes
    found = _read(public, settings.data)
    records, others = _as_task(found, public, task, labelled)
    if task.columns.form in ("class", "text"):
        require_text(TextDataset(records, found.name, task.text), task.text)
    else:
        checked(TextDataset(records, found.name, task.columns.names), task.columns, "refuse")
    tweets = "tweets" in (settings.data.source, public.source)
    key = _key(normalise_tweet if tweets else normalise_text, task.text)
    federation = load_federation(_with_all_evaluation(settings))
    if evaluation_source(settings.data, public) == "public":
        read = TextDataset(records, found.name, task.columns.names)
        judged = {key(record) for record in _judged_public(read, task.text, settings.seed).records}
    else:
        judged = {key(record) for record in federation.evaluation.records}
    kept = [record for record in records if key(record) not in judged]
    if not kept:
        raise DataError(
            f"Expected public examples beside the evaluation's, got {found.name} with {len(found)} "
            f"records: {others} of classes that public.labels does not name, "
            f"{len(records) - len(kept)} that the server evaluates on"
        )
    dataset = TextDataset(kept, found.name, task.columns.names)
    dataset = first_by_hash(dataset, public.limit, task.text, settings.seed)
    shared = _shared(dataset, federation, key)
    return PublicData(dataset, len(found), others, len(records) - len(kept), shared)


def _read(public: PublicSettings, data: DataSettings) -> TextDataset:
    if public.source == "hub":
        try:
            return load_hub(str(public.path), subset=public.subset, split=public.split)
        except DataError as error:
            raise DataError(str(error).replace("data.path", "public.path")) from error
    if public.source == "files":
        try:
            return load_file(str(public.path), encoding=public.encoding, delimiter=public.delimiter)
        except DataError as error:
            raise DataError(str(error).replace("data.", "public.")) from error
    tweets = load_tweets()
    named = data.silo_names
    if data.source != "tweets" or data.partition != "natural" or not named:
        return tweets
    column = data.silo_column
    require_columns(tweets, (column,))
    chosen = (row for row, record in enumerate(tweets.records) if record[column] not in named)
    return tweets.select(chosen)


def _as_task(
    found: TextDataset, public: PublicSettings, task: TaskSettings, labelled: bool
) -> tuple[list[Record], int]:
    """Return the records in the task's columns and classes, and how many were of other classes."""
    tweets = public.source == "tweets"
    columns = public.text or (("text",) if tweets else task.text)
    if len(columns) != len(task.text):
        raise DataError(
            f"Expected as many public.text columns as task.text ({', '.join(task.text)}), got "
            f"{', '.join(columns)}"
        )
    target = public.target or ("label" if tweets else task.target)
    if task.columns.form == "messages":
        target = columns[0]
    require_columns(found, (*columns, target) if labelled else columns)
    classes = task.classes or None
    filler = classes[0] if classes else ""
    records: list[Record] = []
    others: Counter[str] = Counter()
    for record in found.records:
        value = record[target] if labelled else filler
        if labelled and public.labels:
            place = class_place(value, list(public.labels))
            if place is None:
                others[str(value)] += 1
                continue
            value = list(public.labels.values())[place]
        if labelled and classes is not None and class_place(value, classes) is None:
            raise DataError(
                f"Expected a class among task.labels ({', '.join(classes)}) in column '{target}' of "
                f"{found.name}, got {str(value)[:40]!r}; name what each of its classes stands for in "
                "public.labels"
            )
        texts = {name: record[column] for name, column in zip(task.text, columns, strict=True)}
        records.append(texts | {task.target: value})
    if not records:
        raise DataError(
            f"Expected classes among public.labels ({', '.join(public.labels)}) in column '{target}' "
            f"of {found.name}, got only {', '.join(sorted(others))}"
        )
    return records, others.total()


def _key(
    normalise: Callable[[str], str], columns: Sequence[str]
) -> Callable[[Record], tuple[str, ...]]:
    return lambda record: tuple(normalise(str(record[column])) for column in columns)


def _with_all_evaluation(settings: Settings) -> Settings:
    evaluation = settings.evaluation.model_copy(update={"max_examples": None})
    return settings.model_copy(update={"evaluation": evaluation})


def _shared(
    dataset: TextDataset, federation: Federation, key: Callable[[Record], tuple[str, ...]]
) -> int:
    """Return the number of examples that are a silo's too. They stay: leaving out what a silo has would make the
    public set a function of private data.

    Raises:
        DataError: so many that the text is no public text.
    """
    own = {
        key(record)
        for silo in federation.silos
        for record in (*silo.train.records, *silo.held_out.records)
    }
    shared = sum(key(record) in own for record in dataset.records)
    if shared > MOST_SHARED * len(dataset):
        raise DataError(
            f"Expected public text of no silo, got {dataset.name}: {shared} of its {len(dataset)} "
            "examples are examples of the silos; name other text in [public], or (tweets) "
            "only some organisations in data.silo_names"
        )
    return shared
