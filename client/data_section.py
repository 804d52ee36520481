"""Section ``[data]`` of a silo config: where the silo's examples are, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedllm.settings.kinds import Form
from fedllm.settings.section import Section


class DataSection(Section):
    """Location and format of the silo's examples."""

    path: str = Field(
        description="Data file (JSON Lines, JSON, CSV, TSV, TXT, each also .gz; Parquet), relative to this file; `~` and "
        "$VARIABLES are expanded."
    )
    encoding: str = Field(
        "utf-8", description="Text encoding of the file; UTF-16 is detected by its byte-order mark."
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None,
        description="Column delimiter of a CSV, TSV or TXT file; empty: detected from the header.",
    )
    text: tuple[str, ...] = Field(
        ("text",),
        min_length=1,
        description="Columns with the input, in the order of the experiment's task.text. No other column is read, even if "
        "an experiment names it.",
    )
    target: str = Field(
        "label",
        description="Column with the class, or with the target text. Conversations have one column, that of `text`.",
    )
    labels: tuple[str, ...] = Field(
        (),
        description="Classes (labels, tags) that the data may contain, as written there. An experiment without one of them "
        "is refused, so that a refusal reveals nothing about the data. Empty: the target is free text.",
    )
    form: Literal["", "class", "text", "messages", "labels", "number", "tags"] = Field(
        "",
        description="What the target holds: a `class`, a `text`, `messages` of a conversation (task.kind=chat), `labels` "
        "(multilabel), a `number` (regression) or `tags` of words (tokens). Experiments of another form are "
        "refused. Empty: a class where there are `labels`, else a text.",
    )
    separator: Annotated[str, Field(min_length=1)] = Field(
        "|", description="Separator of `labels` that are written as one text."
    )
    template: bool = Field(
        False,
        description="Whether an experiment may bring its own chat template (task.template). A template decides which "
        "conversations it takes, and so may tell the server of the data by a refusal. Else only that of the silo's copy "
        "of the model is used.",
    )
    bad_rows: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Handling of rows that are not records and of unusable records (no text, half a character, an unknown "
        "class, no token, ...). `refuse`: the silo does not take part. `drop`: they are dropped. The log has "
        "their number; the server learns neither.",
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share held out for the silo's own evaluation, selected by a hash of the text. The silo sets it and "
        "its seed: a server that did could learn by repeated requests which text is held out.",
    )
    holdout_seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of this hash.")

    @property
    def holds(self) -> Form:
        """Form of the target, found where it is not named."""
        return self.form or ("class" if self.labels else "text")

    @model_validator(mode="before")
    @classmethod
    def _one_column(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("form") == "messages":
            text = values.get("text", ["messages"])
            first = text[0] if isinstance(text, list | tuple) and text else "messages"
            return {"text": text, "target": first, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> DataSection:
        named = self.holds in ("class", "labels", "tags")
        if named != bool(self.labels):
            raise ValueError(
                f"Expected {'data.labels' if named else 'no data.labels'} for data.form={self.holds}, got "
                f"data.labels={list(self.labels)}"
            )
        if self.holds == "messages" and self.text != (self.target,):
            raise ValueError(
                "Expected one column in data.text, and the same in data.target, for data.form=messages, got "
                f"data.text={list(self.text)}, data.target={self.target!r}"
            )
        return self
