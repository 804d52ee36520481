"""The values of ``task.kind``, ``codec.name`` and ``teacher.kind``: the package's own, and those registered from outside.

The facts of a kind are what checks of the settings and readers of the data must know of it. What makes a kind is
registered elsewhere, which loads models: :func:`fedllm.tasks.register_task`, :func:`fedllm.codec.register_codec` and
:func:`fedllm.flatness.teacher.register_teacher`. Each of them adds the facts here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Facts = TypeVar("Facts")
Form = Literal["class", "text", "messages", "labels", "number", "tags"]
"""Content of the columns of a record; :mod:`fedllm.data.record_forms` reads each."""


@dataclass(frozen=True)
class RecordColumns:
    """The columns of a record that a task reads, and what they hold.

    Attributes:
        text: columns of the input.
        target: column of the target; for conversations that of the input.
        form: what they hold.
        labels: classes, labels or tags that the target is made of; empty for other forms.
        separator: between labels that are written as one text.
    """

    text: tuple[str, ...]
    target: str
    form: Form = "text"
    labels: tuple[str, ...] = ()
    separator: str = "|"

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, each once."""
        return tuple(dict.fromkeys((*self.text, self.target)))


@dataclass(frozen=True)
class TaskFacts:
    """Facts of a kind of task.

    Attributes:
        classes: whether the target column holds one of ``task.labels``, whose number is ``Feature.target``; else it
            holds a text, and a feature has a ``target_mask``.
        accuracy: whether ``Task.evaluate`` returns ``accuracy``, the share of examples with a correct answer, so that
            the silos can count them.
        backbone: the kind of backbone it needs; None for either.
        form: what a record holds; empty: a class with ``classes``, else a text.
        columns: names of the columns of input and target where the settings name none; None: ``text`` and ``label``.
        scores: whether ``Task.scores`` has a meaning: answers as shares, which a teacher's can be compared with.
    """

    classes: bool
    accuracy: bool = False
    backbone: Literal["encoder", "decoder"] | None = None
    form: Form | Literal[""] = ""
    columns: tuple[str, str] | None = None
    scores: bool = True

    @property
    def holds(self) -> Form:
        """Form of a record, by default that of a class or a text."""
        return self.form or ("class" if self.classes else "text")

    @property
    def names_labels(self) -> bool:
        """True if the target is made of ``task.labels``."""
        return self.holds in ("class", "labels", "tags")

    @property
    def writes(self) -> bool:
        """True if the model writes the target: its loss is over the vocabulary."""
        return self.holds in ("text", "messages")


@dataclass(frozen=True)
class CodecFacts:
    """Facts of a kind of codec; the defaults promise nothing.

    Attributes:
        keeps_all: whether every coordinate is sent, and only its number format is shorter.
        prior: whether it is fitted to a prior.
        lipschitz: whether a Lipschitz constant of ``project`` is known, so that noise can be added to the code.
        bounded: whether neither ``project`` nor ``reconstruct`` makes a vector longer, so that an update has the
            length of one without a codec at most.
        own_format: whether its numbers have a format of their own, so that ``codec.bits`` must be 32.
    """

    keeps_all: bool = False
    prior: bool = False
    lipschitz: bool = False
    bounded: bool = False
    own_format: bool = False


@dataclass(frozen=True)
class TeacherFacts:
    """Facts of a kind of teacher.

    Attributes:
        public: whether it is trained on the text of ``[public]``.
        gradients: whether it is trained by gradients of the model.
        sentence: the report's words for a teacher from outside: where its weights come from; empty for the
            package's own, whose words are in :mod:`fedllm.report.sections.teacher`.
    """

    public: bool = False
    gradients: bool = False
    sentence: str = ""


class Kinds(Generic[Facts]):
    """The values that one setting may have, with the facts of each.

    Args:
        setting: its dotted name.
        own: the values of the package, by name.
    """

    def __init__(self, setting: str, own: Mapping[str, Facts]) -> None:
        self.setting = setting
        self._facts = dict(own)
        self._own = frozenset(own)

    def add(self, name: str, facts: Facts) -> None:
        """Add a value.

        Raises:
            ValueError: there is one of that name, or the name is blank.
        """
        if not name.strip() or name in self._facts:
            raise ValueError(
                f"Expected a new name for {self.setting}, beside {', '.join(self._facts)}, got {name!r}"
            )
        self._facts[name] = facts

    def remove(self, name: str) -> None:
        """Remove a value that :meth:`add` added."""
        if name not in self._own:
            self._facts.pop(name, None)

    def check(self, name: str) -> str:
        """Return the name of a known value.

        Raises:
            ValueError: it is unknown; all known ones are named.
        """
        if name not in self._facts:
            raise ValueError(
                f"Expected {self.setting} among {', '.join(self._facts)}, got {name!r} (one of another package must "
                "be registered in this process first)"
            )
        return name

    def __getitem__(self, name: str) -> Facts:
        return self._facts[self.check(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._facts

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)


TASKS = Kinds(
    "task.kind",
    {
        "classification": TaskFacts(classes=True, accuracy=True),
        "generation": TaskFacts(classes=False, backbone="decoder"),
        "chat": TaskFacts(
            classes=False, backbone="decoder", form="messages", columns=("messages", "messages")
        ),
        "multilabel": TaskFacts(
            classes=False,
            accuracy=True,
            backbone="encoder",
            form="labels",
            columns=("text", "labels"),
        ),
        "regression": TaskFacts(
            classes=False,
            backbone="encoder",
            form="number",
            columns=("text", "score"),
            scores=False,
        ),
        "tokens": TaskFacts(
            classes=False, backbone="encoder", form="tags", columns=("tokens", "tags")
        ),
    },
)
CODECS = Kinds(
    "codec.name",
    {
        "none": CodecFacts(keeps_all=True, lipschitz=True, bounded=True),
        "fp16": CodecFacts(keeps_all=True, lipschitz=True, bounded=True, own_format=True),
        "int8": CodecFacts(keeps_all=True, lipschitz=True, bounded=True, own_format=True),
        "top-k": CodecFacts(bounded=True, own_format=True),
        "random-projection": CodecFacts(lipschitz=True, bounded=True),
        "linear": CodecFacts(prior=True, lipschitz=True, bounded=True),
        "autoencoder": CodecFacts(prior=True),
    },
)
TEACHERS = Kinds(
    "teacher.kind",
    {
        "none": TeacherFacts(),
        "ema": TeacherFacts(),
        "public": TeacherFacts(public=True, gradients=True),
        "nonprivate": TeacherFacts(gradients=True),
    },
)
