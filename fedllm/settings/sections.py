"""Settings sections without a file of their own: model, task, data, client, evaluation, outputs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedllm.settings.section import NonNegativeInt, PositiveFloat, PositiveInt, Rate, Section


class ModelSettings(Section):
    """The frozen language model (backbone)."""

    name: str = Field(
        "minilm",
        min_length=1,
        description="Hugging Face model id, a model folder, a .gguf file, or one of the embedded "
        "names `minilm` (encoder, 22 M) and `smollm2` (decoder, 135 M).",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the backbone; `auto` is bfloat16 (or float16) on a GPU and "
        "float32 on a CPU. Prefixes, heads, clipping and noise are float32 always.",
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")
    access: Literal["white-box", "black-box"] = Field(
        "white-box",
        description="`white-box`: gradients of the model are available; `black-box`: only its outputs "
        "are, and it is trained by steps along random directions ([zeroth_order]).",
    )
    revision: str | None = Field(None, description="Revision on the Hugging Face hub.")
    gguf_file: str | None = Field(
        None, description="Name of the GGUF file inside a hub repository."
    )


class PrefixSettings(Section):
    """The trained prefix: keys and values in front of every chosen attention layer."""

    length: NonNegativeInt = Field(
        8, description="Virtual positions a layer; 0 trains the head alone (classification)."
    )
    layers: Literal["all"] | tuple[int, ...] = Field(
        "all",
        description="`all`, or a list of layer numbers that carry a prefix; negative counts "
        "from the top.",
    )
    init: Literal["phrase", "random"] = Field(
        "phrase", description="Start from the activations of `phrase`, or from Gaussian noise."
    )
    phrase: str = Field(
        "Classify the sentiment of this text as negative, neutral or positive:",
        description="Text whose keys and values start the prefix. It must not hold private data.",
    )
    init_std: PositiveFloat = Field(0.02, description='Standard deviation of `init = "random"`.')


class TaskSettings(Section):
    """What is learned and how an example is written for the model."""

    kind: Literal["classification", "generation"] = Field(
        "classification", description="Classify a text, or write a text for an input."
    )
    text: tuple[str, ...] = Field(
        ("text",),
        min_length=1,
        description="Columns with the input (two for sentence pairs). Encoders read the second and later ones as "
        "one second text, the tokenizer's separator between them.",
    )
    target: str = Field("label", description="Column with the class, or with the text to write.")
    labels: tuple[str, ...] | None = Field(
        None,
        description="Classes in order, as the data writes them. Data-independent: they must "
        "be named, not collected from private data. Unused for generation.",
    )
    label_words: tuple[str, ...] | None = Field(
        None, description="Decoders: the word that stands for each class (first token counts)."
    )
    prompt: str | None = Field(
        None,
        description="Decoders: the input's wording, with {column} for each text column. "
        "The label word or the target text follows it.",
    )
    pooling: Literal["mean", "cls"] = Field("mean", description="Encoders: what the head reads.")
    max_length: PositiveInt = Field(64, description="Tokens kept of an input (and of a target).")

    @model_validator(mode="after")
    def _check(self) -> TaskSettings:
        if self.kind == "classification":
            if not self.labels or len(self.labels) < 2:
                raise ValueError(
                    f"Expected task.labels with at least 2 classes for task.kind=classification, "
                    f"got task.labels={self.labels}"
                )
            if len(set(self.labels)) != len(self.labels):
                raise ValueError(f"Expected distinct task.labels, got {self.labels}")
            if self.label_words is not None and len(self.label_words) != len(self.labels):
                raise ValueError(
                    f"Expected as many task.label_words as task.labels ({len(self.labels)}), "
                    f"got task.label_words={self.label_words}"
                )
        return self


class DataSettings(Section):
    """Where the text comes from and how it is divided among the silos (simulation)."""

    source: Literal["tweets", "files", "hub"] = Field(
        "tweets",
        description="`tweets` (embedded), `files` (JSON Lines, JSON, CSV, TSV, TXT, each also .gz; Parquet), "
        "`hub` (datasets).",
    )
    path: str | None = Field(
        None,
        description="Hub data set id, or a folder that `train` and `validation` are relative "
        "to; `~` and $VARIABLES are expanded; a relative path is relative to the settings file.",
    )
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    train: str = Field(
        "train",
        description="File name, or split name on the hub. A folder: one file a silo, named as the silo.",
    )
    validation: str | None = Field(
        None,
        description="File or split with the server's own evaluation data (never a silo's). "
        "Empty: `holdout` is cut off before the silos are made.",
    )
    encoding: str = Field(
        "utf-8", description="Text encoding of the files; UTF-16 is known by its mark."
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None,
        description="Character between the columns of CSV, TSV and TXT files; empty: found from the header.",
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1,
        description="Share of the examples kept from all silos for the server's evaluation, "
        "chosen by a hash of each example's text alone. Used where `validation` is not given.",
    )
    limit: PositiveInt | None = Field(
        None,
        description="Use only so many training examples, chosen by a hash of their text, for quick tries.",
    )
    partition: Literal["natural", "hash", "iid", "dirichlet", "pathological"] = Field(
        "natural",
        description="How the training data becomes silos. With `natural` (by a column) and `hash` (of the text) "
        "a record's silo depends on the record alone; otherwise one record moves others.",
    )
    silos: PositiveInt | None = Field(
        None,
        description="Number of silos; with `natural` the largest ones are kept (all if empty).",
    )
    silo_column: str = Field("organisation", description="`natural`: one silo per value of this.")
    silo_names: tuple[str, ...] | None = Field(
        None, description="`natural`: only these values, in this order."
    )
    min_size: PositiveInt = Field(32, description="Silos with fewer examples are left out.")
    alpha: PositiveFloat = Field(0.5, description="`dirichlet`: concentration; small is uneven.")
    classes_per_silo: PositiveInt = Field(2, description="`pathological`: classes in a silo.")
    bad_rows: Literal["refuse", "drop"] = Field(
        "refuse",
        description="What is done with rows that are no records, and with records that cannot be used (no text, "
        "half a character, an unknown class, no token, ...), all found when the data are opened: `refuse` to take "
        "part, or `drop` them and say how many in the silo's own log. A silo with its own config decides there.",
    )
    sizes: Literal["public", "private"] = Field(
        "public",
        description="Whether a silo's number of examples is public knowledge. `private` "
        "withholds it from the server and needs client.sampling_rate.",
    )


class ClientSettings(Section):
    """Local training at a silo."""

    local_steps: PositiveInt = Field(1, description="Gradient steps a round.")
    batch_size: PositiveInt | None = Field(
        64,
        description="Expected size of a Poisson batch; the sampling rate is this over the "
        "silo's number of examples. The divisor of the gradient sum, whatever the batch drawn.",
    )
    sampling_rate: Rate | None = Field(
        None,
        description="Sampling rate of each example instead; `batch_size` is then only the "
        "divisor, and nothing depends on the silo's number of examples.",
    )
    optimizer: Literal["sgd", "adam"] = Field(
        "sgd",
        description="Local optimiser. With one local step, `sgd` and rate 1 the client sends "
        "its gradient (FedSGD), and the server's optimiser does the work.",
    )
    learning_rate: PositiveFloat = Field(1.0, description="Local learning rate.")
    max_tokens: PositiveInt = Field(
        4096,
        description="Tokens of a physical micro-batch (memory); does not change the result. On other devices than "
        "the CPU micro-batches have a fixed shape of at most 2048 tokens.",
    )
    parameter_norm: PositiveFloat = Field(
        1e4,
        description="A silo refuses parameters with a tensor whose norm is more than this times the initial one "
        "(which counts as at least 1).",
    )

    max_batch: PositiveInt | None = Field(
        None,
        description="Fixed shapes: a step's Poisson sample is cut to so many examples, chosen at random, each is "
        "padded to the task's longest, and the batch is filled up, so that a step's work does not depend on the "
        "data. Well above batch_size it costs hardly any privacy, and the time of max_batch full examples a step. "
        "Empty: no fixed shapes.",
    )

    @model_validator(mode="after")
    def _check(self) -> ClientSettings:
        if self.batch_size is None:
            raise ValueError(
                "Expected client.batch_size (it is the divisor of the gradient sum), got none"
            )
        return self


class EvaluationSettings(Section):
    """How the model is judged while it trains."""

    every: PositiveInt = Field(5, description="Rounds between evaluations by the server.")
    max_examples: PositiveInt | None = Field(
        1000,
        description="Evaluate on so many of the server's examples (first by hash); empty: all.",
    )
    generate: NonNegativeInt = Field(
        32,
        description="Generation: number of texts written for BLEU and ROUGE-L in the last "
        "evaluation (slow); 0 reports perplexity alone.",
    )
    max_new_tokens: PositiveInt = Field(48, description="Generation: tokens written at most.")
    clients: Literal["off", "private", "raw"] = Field(
        "off",
        description="Evaluation by the silos on held-out examples of their own: `private` "
        "adds noise to the counts, as an event in the ledger; `raw` sends them as they are, which has "
        "no guarantee and is reported so.",
    )
    clients_holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of a silo's examples kept for `clients`, by hash of the text."
    )
    clients_noise: PositiveFloat = Field(
        20.0,
        description="`private`: noise multiplier of each release of the pair (correct, number); each "
        "of the two gets discrete Gaussian noise with sigma = sqrt(2) times this.",
    )

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.clients != "off" and self.clients_holdout == 0:
            raise ValueError(
                "Expected evaluation.clients_holdout > 0 where evaluation.clients is not off, got 0"
            )
        return self


class SimulationSettings(Section):
    """Resources of a simulation on one machine (Ray)."""

    workers: PositiveInt | None = Field(
        None, description="Worker processes; empty: one per CPU core (or one per GPU share)."
    )
    threads: PositiveInt = Field(
        1,
        description="CPU threads of each worker. Part of reproducibility: the order of "
        "floating-point sums depends on it; the number of workers changes nothing.",
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs of each worker; 0.25 puts four on one GPU."
    )


class OutputSettings(Section):
    """What a run leaves behind."""

    folder: str = Field("runs", description="Run folders are made below this folder.")
    tensorboard: bool = Field(True, description="Write TensorBoard events too.")
