"""The tasks of the reference: data sets of a folder, and their settings for each kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.data.formats.sources import load_file
from fedllm.settings.experiment import Settings
from simulations.benchmarks.support.workload import data_folder

Record = dict[str, Any]


@dataclass(frozen=True)
class ReferenceTask:
    """A data set, and how each kind of model is asked.

    Attributes:
        name: its folder, with ``train.jsonl.gz`` and ``validation.jsonl.gz``.
        text: columns with the input.
        labels: the classes; none: the task is to write ``target``.
        prompt, label_words: for a decoder.
        phrase: words that a prefix begins with.
        max_length: tokens of an input (of a text to write).
    """

    name: str
    text: tuple[str, ...]
    labels: tuple[str, ...]
    prompt: str
    phrase: str
    label_words: tuple[str, ...] = ()
    target: str = "label"
    max_length: int = 64

    def read(self, part: str, folder: Path | None = None) -> list[Record]:
        """Return the records of ``train`` or ``validation``, in the file's order.

        Raises:
            DataError: the file is not there.
        """
        file = (folder or data_folder()) / self.name / f"{part}.jsonl.gz"
        found = []
        for record in load_file(file).records:
            kept = {column: record[column] for column in self.text}
            # E2E's validation has all references of an input, its training set one a record.
            target = record.get("refs") or record[self.target]
            found.append(kept | {self.target: str(target) if self.labels else target})
        return found

    def settings(self, model: str, decoder: bool, adapter: dict[str, Any]) -> Settings:
        """Return the settings of a model with an adapter on this task, without privacy."""
        task: dict[str, Any] = {
            "kind": "classification" if self.labels else "generation",
            "text": self.text,
            "target": self.target,
            "max_length": self.max_length,
        }
        task |= {"labels": self.labels} if self.labels else {}
        task |= {"prompt": self.prompt} if decoder or not self.labels else {}
        task |= {"label_words": self.label_words} if decoder and self.labels else {}
        prefix: dict[str, Any] = {"length": 0}
        if adapter["form"] == "prefix":
            prefix = {"length": adapter.pop("length", 2), "phrase": self.phrase}
            prefix |= {"layers": adapter.pop("layers")} if "layers" in adapter else {}
        return Settings.model_validate(
            {
                "name": f"reference-{self.name}",
                "model": {"name": model, "dtype": "float32", "reuse": "memory", "reuse_gib": 6.0},
                "adapter": adapter,
                "prefix": prefix,
                "task": task,
                "privacy": {"mode": "none"},
            }
        )


TASKS = {
    task.name: task
    for task in (
        ReferenceTask(
            "sst2",
            ("text",),
            ("0", "1"),
            "Review: {text}\nSentiment:",
            "Is this film review negative or positive?",
            (" negative", " positive"),
        ),
        ReferenceTask(
            "qnli",
            ("question", "sentence"),
            ("0", "1"),
            "{sentence}\nQuestion: {question}\nAnswered:",
            "Does the sentence answer the question?",
            (" no", " yes"),
            max_length=96,
        ),
        ReferenceTask(
            "mnli",
            ("premise", "hypothesis"),
            ("0", "1", "2"),
            "{premise}\nTherefore: {hypothesis}\nThis is",
            "Does the first sentence imply the second?",
            (" true", " open", " false"),
            max_length=96,
        ),
        ReferenceTask(
            "e2e",
            ("mr",),
            (),
            "Restaurant: {mr}\nDescription:",
            "Describe the restaurant in one or two plain sentences:",
            target="ref",
        ),
    )
}
