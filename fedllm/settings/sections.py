"""Settings of the smaller sections: model, prefix, task, data, client, evaluation, simulation, output."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedllm.settings.checks.task_section import check_task, filled_columns
from fedllm.settings.kinds import TASKS, Form, RecordColumns, TaskFacts
from fedllm.settings.section import NonNegativeInt, PositiveFloat, PositiveInt, Rate, Section

_PHRASE_LABELS = 20
"""Labels that the default phrase names at most."""


class ModelSettings(Section):
    """The frozen language model (backbone)."""

    name: str = Field(
        "minilm",
        min_length=1,
        description="Model: a Hugging Face id, a model folder, a .gguf file, or an embedded name: `minilm` (encoder, 22 M "
        "parameters) or `smollm2` (decoder, 135 M).",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the backbone. `auto` is bfloat16 (or float16) on a GPU and float32 on a CPU. "
        "Prefixes, heads, clipping and noise always use float32.",
    )
    device: str = Field("auto", description="Device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")
    device_map: Literal["none", "auto"] = Field(
        "none",
        description="`auto` spreads the frozen layers over all GPUs (with `device` = `cuda:1` over that one), and what "
        "does not fit them stays in the machine's memory, from where it is moved for each computation; then use "
        "`checkpointing` too.",
    )
    access: Literal["white-box", "black-box"] = Field(
        "white-box",
        description="Access to the model. `white-box` uses its gradients; `black-box` uses only its outputs and trains by "
        "steps along random directions ([zeroth_order]).",
    )
    reuse: Literal["off", "memory", "disk"] = Field(
        "off",
        description="Keep the states of each example that enter the lowest trained layer, and start later passes "
        "there: in `memory`, or in a temporary file on `disk`. They stay in the process, and are gone with it. The "
        "result is the same; the time of a step then depends on which examples were drawn before.",
    )
    reuse_gib: PositiveFloat = Field(
        1.0,
        description="Most GiB that a process keeps for `reuse`; the states of further examples are computed anew.",
    )
    reuse_dtype: Literal["model", "float16", "bfloat16"] = Field(
        "model",
        description="Number format of the states that are kept: the model's own (the result is the same bits), or one "
        "of half the size.",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none",
        description="Store the matrices in the frozen layers in 8 bits (a scale a row) or in 4 (NF4, a scale for 64 numbers; "
        "needs the package bitsandbytes). They are unpacked where they are multiplied, and nothing else is rounded. The "
        "same in all silos.",
    )
    checkpointing: bool = Field(
        False,
        description="Keep what enters each layer alone, and compute the layer again in the backward pass. The gradients are "
        "the same; a step needs less memory and about a third more time.",
    )
    revision: str | None = Field(
        None, description="Revision on the Hugging Face hub; empty: the default branch."
    )
    gguf_file: str | None = Field(None, description="Name of the GGUF file in a hub repository.")


class PrefixSettings(Section):
    """The trained prefix: keys and values in front of every chosen attention layer."""

    length: NonNegativeInt = Field(
        8,
        description="Number of virtual positions per layer; 0 trains only the head (classification).",
    )
    layers: Literal["all"] | tuple[int, ...] = Field(
        "all",
        description="Layers that carry a prefix: `all`, or a list of layer numbers; negative numbers count from the top.",
    )
    init: Literal["phrase", "random"] = Field(
        "phrase",
        description="Initial value: `phrase` uses the activations of the setting `phrase`, `random` uses Gaussian noise.",
    )
    phrase: str | None = Field(
        None,
        description="Text whose keys and values initialise the prefix. It must not contain private data. Empty: a phrase "
        "made of `task.kind` and `task.labels`.",
    )
    init_std: PositiveFloat = Field(
        0.02, description='Standard deviation of the noise of `init = "random"`.'
    )


class TaskSettings(Section):
    """The task, and the format of an example for the model."""

    kind: Annotated[str, AfterValidator(TASKS.check)] = Field(
        "classification",
        description="Task: `classification` assigns a class to a text, `generation` writes a text for an input, `chat` the "
        "assistant's turns of a conversation; `multilabel` assigns any number of labels, `regression` a number, `tokens` a "
        "tag to each word. Another package may register more.",
    )
    text: tuple[str, ...] = Field(
        ("text",),
        min_length=1,
        description="Columns with the input (two for sentence pairs). Encoders join the second and later columns into one "
        "second text, with the tokenizer's separator in between. Default for chat: `messages`; for tokens: `tokens`.",
    )
    target: str = Field(
        "label",
        description="Column with the class, or with the target text. Default for multilabel: `labels`; for regression: "
        "`score`; for tokens: `tags`. Chat has one column.",
    )
    labels: tuple[str, ...] | None = Field(
        None,
        description="Ordered class names (labels, tags), as written in the data. They must not be collected from private "
        "data. Unused for generation, chat and regression.",
    )
    label_words: tuple[str, ...] | None = Field(
        None,
        description="Decoders: the word that stands for each class; only its first token counts.",
    )
    prompt: str | None = Field(
        None,
        description="Decoders: prompt template with {column} for each text column. The label word or the target text "
        "follows it.",
    )
    pooling: Literal["mean", "cls"] = Field(
        "mean",
        description="Encoders: hidden state that the head reads, the mean over tokens or the first token (`cls`).",
    )
    max_length: PositiveInt = Field(
        64,
        description="Maximum number of tokens of an input, and of a target text; longer ones are truncated. Chat: of the "
        "last answer.",
    )
    max_prompt: PositiveInt | None = Field(
        None,
        description="Chat: maximum number of tokens of a conversation before its last answer. Beyond it the oldest turns are "
        "left out (a system message stays), and only then text is truncated. Empty: max_length.",
    )
    template: str | None = Field(
        None,
        description="Chat: template (Jinja, as in a tokenizer's chat_template), or the path of a file with one, which is read "
        "with the settings. Empty: the tokenizer's own.",
    )
    separator: str = Field(
        "|",
        min_length=1,
        description="Multilabel: separator of the labels where the column holds them as one text.",
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="Multilabel: least probability at which a label is assigned."
    )
    target_range: tuple[float, float] | None = Field(
        None,
        description="Regression: least and largest number, [low, high]. It must be public, and not be taken from private "
        "data. Numbers beyond it are trained on as its ends.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_columns(cls, values: Any) -> Any:
        return filled_columns(values)

    @model_validator(mode="after")
    def _check(self) -> TaskSettings:
        check_task(self)
        return self

    @property
    def facts(self) -> TaskFacts:
        """Facts of the kind of task."""
        return TASKS[self.kind]

    @property
    def has_classes(self) -> bool:
        """True if the target is one of ``labels``."""
        return self.facts.classes

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the target; empty where it is none of a list of classes."""
        return self.labels or () if self.has_classes else ()

    @property
    def columns(self) -> RecordColumns:
        """The columns of a record, and what they hold."""
        facts = self.facts
        labels = self.labels or () if facts.names_labels else ()
        return RecordColumns(self.text, self.target, facts.holds, labels, self.separator)

    @property
    def phrase(self) -> str:
        """Phrase that a prefix begins with where none is named: of public settings alone."""
        labels = ", ".join((self.labels or ())[:_PHRASE_LABELS])
        phrases: dict[Form, str] = {
            "class": f"Assign one of these classes to the text: {labels}.",
            "labels": f"Assign any of these labels to the text: {labels}.",
            "tags": f"Tag each word of the text with one of these tags: {labels}.",
            "number": "Give the number that belongs to the text:",
            "text": "Write the text that belongs to the input:",
            "messages": "Write the assistant's next turn of the conversation:",
        }
        return phrases[self.facts.holds]

    @property
    def prompt_length(self) -> int:
        """Chat: most tokens before the last answer."""
        return self.max_prompt or self.max_length


class DataSettings(Section):
    """The data set, and its division into silos (simulation)."""

    source: Literal["tweets", "files", "hub"] = Field(
        "tweets",
        description="Data source: `tweets` (embedded), `files` (JSON Lines, JSON, CSV, TSV, TXT, each also .gz; Parquet) "
        "or `hub` (Hugging Face datasets).",
    )
    path: str | None = Field(
        None,
        description="Hub data set id, or the folder that contains the files `train` and `validation`. `~` and $VARIABLES "
        "are expanded; a relative path is relative to the settings file.",
    )
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    train: str = Field(
        "train",
        description="Training data: a file name, or a split name on the hub. A folder holds one file per silo; the file "
        "name is the silo's name.",
    )
    validation: str | None = Field(
        None,
        description="File or split with the server's own evaluation data, never a silo's. Empty: the server evaluates on "
        "the share `holdout`, else on a fifth of the text of [public] (which it does not train on); without all of them "
        "it has no text to evaluate on, and `evaluation.clients` may.",
    )
    encoding: str = Field(
        "utf-8",
        description="Text encoding of the files; UTF-16 is detected by its byte-order mark.",
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None,
        description="Column delimiter of CSV, TSV and TXT files; empty: detected from the header.",
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of the silos' examples that the server gets for its evaluation, as plain text that nothing "
        "protects; the report's first lines say so. They are selected by a hash of each example's text and train "
        "nowhere. Used if `validation` is empty.",
    )
    limit: PositiveInt | None = Field(
        None,
        description="Maximum number of training examples, selected by a hash of their text, for quick trials. Empty: all.",
    )
    partition: Literal["natural", "hash", "iid", "dirichlet", "pathological"] = Field(
        "natural",
        description="Method that divides the training data into silos. With `natural` (by a column) and `hash` (of the "
        "text), a record's silo depends on the record alone; with the others, changing one record can move "
        "other records.",
    )
    silos: PositiveInt | None = Field(
        None,
        description="Number of silos. With `natural`, the largest ones are kept; empty: all.",
    )
    silo_column: str = Field(
        "organisation", description="`natural`: column whose values define the silos."
    )
    silo_names: tuple[str, ...] | None = Field(
        None, description="`natural`: values to use as silos, in this order; empty: all values."
    )
    min_size: PositiveInt = Field(
        32, description="Minimum number of examples of a silo; smaller silos are dropped."
    )
    alpha: PositiveFloat = Field(
        0.5,
        description="`dirichlet`: concentration parameter; smaller values give more uneven silos.",
    )
    classes_per_silo: PositiveInt = Field(
        2, description="`pathological`: number of classes per silo."
    )
    bad_rows: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Handling of rows that are not records and of unusable records (no text, half a character, an unknown "
        "class, no token, ...), checked when the data are opened. `refuse`: the silo does not take part. "
        "`drop`: the rows are dropped and counted in the silo's own log. A silo with its own config sets this "
        "itself.",
    )
    sizes: Literal["public", "private"] = Field(
        "public",
        description="Visibility of each silo's number of examples. `private` withholds it from the server and requires "
        "client.sampling_rate.",
    )


class ClientSettings(Section):
    """Local training at a silo."""

    local_steps: PositiveInt = Field(1, description="Gradient steps per round.")
    batch_size: PositiveInt | None = Field(
        64,
        description="Expected size of a Poisson batch. The sampling rate is this number divided by the silo's number of "
        "examples. The gradient sum is divided by it, whatever the size of the drawn batch.",
    )
    sampling_rate: Rate | None = Field(
        None,
        description="Sampling rate of each example, given directly. `batch_size` is then only the divisor, and nothing "
        "depends on the silo's number of examples.",
    )
    optimizer: Literal["sgd", "adam"] = Field(
        "sgd",
        description="Local optimiser. With one local step, `sgd` and learning rate 1, the client sends its gradient "
        "(FedSGD) and the server's optimiser takes the step.",
    )
    learning_rate: PositiveFloat = Field(1.0, description="Local learning rate.")
    max_tokens: PositiveInt = Field(
        4096,
        description="Maximum tokens per micro-batch, to limit memory; the result does not depend on it. Except on the CPU, "
        "micro-batches have a fixed shape of at most 2048 tokens.",
    )
    parameter_norm: PositiveFloat = Field(
        1e4,
        description="Maximum norm of each received tensor, relative to its initial norm (or to 1, if that is larger). A "
        "silo refuses larger ones.",
    )

    max_batch: PositiveInt | None = Field(
        None,
        description="Size of fixed-shape batches. A step's Poisson sample is truncated at random to this many examples, "
        "each is padded to the task's maximum length, and the batch is filled up, so that the work of a step "
        "does not depend on the data. A value well above batch_size costs hardly any privacy, but each step "
        "takes the time of max_batch full examples. Empty: no fixed shapes.",
    )

    @model_validator(mode="after")
    def _check(self) -> ClientSettings:
        if self.batch_size is None:
            raise ValueError(
                "Expected client.batch_size (it is the divisor of the gradient sum), got none"
            )
        return self


class EvaluationSettings(Section):
    """Evaluation of the model during training."""

    every: PositiveInt = Field(5, description="Rounds between evaluations by the server.")
    max_examples: PositiveInt | None = Field(
        1000,
        description="Maximum number of the server's evaluation examples, selected by hash; empty: all.",
    )
    generate: NonNegativeInt = Field(
        32,
        description="Generation: number of texts generated for BLEU and ROUGE-L in the last evaluation (slow); 0 reports "
        "perplexity only.",
    )
    max_new_tokens: PositiveInt = Field(
        48, description="Generation: maximum number of generated tokens per text."
    )
    clients: Literal["auto", "off", "private", "raw"] = Field(
        "auto",
        description="Evaluation by the silos on their own held-out examples. `private` adds noise to the counts, as an "
        "event in the ledger. `raw` sends exact counts: this has no guarantee, and the report states it. `auto` becomes "
        "`private`, with a tenth of each silo's examples held out, when a simulation begins where the server has nothing "
        "to evaluate on, the noise leaves a standard error of at most 5 points and the counts cost at most a tenth of "
        "the budget; elsewhere, and in a deployment, it is `off`.",
    )
    clients_holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of a silo's examples held out for `clients`, selected by a hash of the text.",
    )
    clients_noise: PositiveFloat = Field(
        20.0,
        description="`private`: noise multiplier of each release of the pair (correct, total). Each count gets discrete "
        "Gaussian noise with sigma = sqrt(2) times this value.",
    )

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.by_silos and self.clients_holdout == 0:
            raise ValueError(
                "Expected evaluation.clients_holdout > 0 where evaluation.clients is not off, got 0"
            )
        return self

    @property
    def by_silos(self) -> bool:
        """True if the silos evaluate; an ``auto`` that nobody decided is off."""
        return self.clients in ("private", "raw")


MOST_IN_PROCESS = 32
"""Silos of a simulation that train one after the other without being asked to."""


class SimulationSettings(Section):
    """Engine and resources of a simulation on one machine."""

    engine: Literal["auto", "in-process", "ray"] = Field(
        "auto",
        description="`in-process`: the silos train one after the other in this process, which has one copy of the model. "
        "`ray`: Flower's Ray engine, with worker processes. Both give the same bits. `auto` is `ray` from 33 silos on, or "
        "where `workers` is above 1 or `gpus_per_worker` above 0, else `in-process`.",
    )
    workers: PositiveInt | None = Field(
        None,
        description="Ray: number of worker processes; empty: one per CPU core (or per GPU share).",
    )
    threads: PositiveInt = Field(
        1,
        description="CPU threads per worker. The order of floating-point sums, and so reproducibility, depends on it; the "
        "number of workers changes nothing.",
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Ray: GPUs per worker; 0.25 puts four workers on one GPU."
    )

    def engine_for(self, silos: int) -> Literal["in-process", "ray"]:
        """Return the engine of a simulation with this number of silos."""
        if self.engine != "auto":
            return self.engine
        asked = (self.workers or 1) > 1 or self.gpus_per_worker > 0
        return "ray" if asked or silos > MOST_IN_PROCESS else "in-process"


class OutputSettings(Section):
    """Files written by a run."""

    folder: str = Field("runs", description="Folder in which run folders are created.")
    tensorboard: bool = Field(
        True, description="Write TensorBoard events in addition to metrics.jsonl."
    )
