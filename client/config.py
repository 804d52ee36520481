"""Silo config (``silo.toml``): a silo's data, ledger, budget and limits.

It lives on the silo's machine and is read there by the silo's client alone. Data, ledger, privacy
budget, limits, model folder and device come from it whatever a server sends. Its place is given by
the environment variable FEDLLM_SILO, or by ``silo-file`` in the node's own configuration
(``flower-supernode --node-config``).
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from client.data_section import DataSection
from client.identity import NodeIdentity
from fedllm.budget.local_policy import LocalPolicy
from fedllm.report.extract.keys import KeyProblem, node_key_of
from fedllm.settings.section import PositiveInt, Rate, Section

ENVIRONMENT = "FEDLLM_SILO"
NODE_KEY = "silo-file"


class SiloConfigError(ValueError):
    """A silo config is missing or invalid; the message may quote it."""


Quantity = Literal["update", "size", "evaluation", "statistics", "layer-scores", "duplicate"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


class BudgetSection(Section):
    """The silo's total budget over all runs, regardless of their settings."""

    epsilon: Annotated[float, Field(gt=0)] = Field(
        description="Upper bound of epsilon over all rows in the ledger; `inf` for none (and for comparison runs without a "
        "guarantee)."
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(description="Delta of this bound.")
    unit: Literal["example", "client"] = Field(
        "example", description="Privacy unit; runs with another unit are refused."
    )
    relation: Literal["zero-out", "add-or-remove-one", "replace-one"] = Field(
        "zero-out",
        description="Neighbouring relation of the bound. `zero-out`: one example is replaced by an empty one; the number "
        "of examples is public. `add-or-remove-one`: the same epsilon while the number stays secret (runs with "
        "data.sizes=private, no `size` in limits.quantities). `replace-one`: unit client.",
    )
    accountant: Literal["pld", "rdp"] = Field(
        "pld", description="Accountant that enforces the bound."
    )
    against: Literal["server", "sum-only"] = Field(
        "server",
        description="Adversary of the bound. `server` sees every message of the silo: a run with privacy.noise_by=sum must "
        "then fit by the silo's own share of the noise alone. `sum-only` learns sums over the silos alone in such a run, which "
        "rests on the protocol's cryptography; other runs count as against the server.",
    )
    colluding: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="With against=sum-only: number of other silos that may collude with the server. Runs with a smaller "
        "secure.colluding are refused.",
    )


class Limits(Section):
    """Limits on an experiment's requests. A request beyond them is refused, and the server gets the reason."""

    rounds: PositiveInt = Field(200, description="Maximum number of rounds of one run.")
    local_steps: PositiveInt = Field(16, description="Maximum number of gradient steps per round.")
    sampling_rate: Rate = Field(
        1.0, description="Maximum probability of an example to be in a local step."
    )
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.3, description="Minimum noise multiplier of any release."
    )
    max_length: PositiveInt = Field(512, description="Maximum number of tokens of an example.")
    max_tokens: PositiveInt = Field(
        16384,
        description="Maximum number of tokens of a micro-batch; it replaces a larger value of an experiment.",
    )
    parameters: PositiveInt = Field(
        20_000_000, description="Maximum number of parameters of adapter and head together."
    )
    max_batch: PositiveInt = Field(
        4096,
        description="Maximum client.max_batch: number of examples that each step of fixed shape computes.",
    )
    directions: PositiveInt = Field(
        256,
        description="Maximum zeroth_order.directions; each direction costs two forward passes over a batch.",
    )
    task_bytes: PositiveInt = Field(
        512 * 2**20,
        description="Maximum size of one task in bytes; the silo stops fetching beyond it.",
    )
    parameter_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1e4,
        description="Maximum norm of a parameter tensor, relative to its norm before training (or to 1, if that is "
        "larger); it replaces a larger value of an experiment.",
    )
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        3600.0, description="Maximum time of one task in seconds; then the node ends it."
    )
    models: tuple[str, ...] = Field(
        ("minilm", "smollm2"),
        description="Allowed values of model.name, or patterns (`google/*`); unused if [model] names a folder of the silo.",
    )
    endpoints: tuple[str, ...] = Field(
        (),
        description="Allowed values of endpoint.url: the silo's texts are sent there.",
    )
    codecs: tuple[str, ...] = Field(("none",), description="Allowed values of codec.name.")
    mechanisms: tuple[Literal["gaussian", "lmo", "none"], ...] = Field(
        ("gaussian",),
        description="Allowed values of privacy.mechanism; `none` stands for privacy.mode=none.",
    )
    randomness: tuple[Literal["os", "seeded"], ...] = Field(
        ("os",),
        description="Allowed values of privacy.randomness. `seeded` lets anyone who knows the seed, such as the server, "
        "remove the noise: for tests on data that are not private.",
    )
    quantities: tuple[Quantity, ...] = Field(
        ("update",),
        description="Quantities that may leave: `update` (training); `size` (the exact number of examples: "
        "data.sizes=public); `evaluation` (counts on held-out examples); `statistics` (for a codec); "
        "`layer-scores`; `duplicate` (raw, no guarantee).",
    )

    @field_validator("mechanisms", mode="before")
    @classmethod
    def _check_mechanisms(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and "searched" in value:
            raise ValueError(
                "Expected no `searched` in limits.mechanisms, a value of an earlier version: no run chooses its own "
                "noise; `lmo` allows the noise of a file"
            )
        return value


class ModelSection(Section):
    """The silo's copy of the backbone, and where it computes."""

    path: str | None = Field(
        None, description="Folder or .gguf file that replaces model.name; relative to this file."
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="Required SHA-256 of the loaded weights, in addition to the server's check; `fedllm deploy doctor` "
        "prints it.",
    )
    device: str = Field("auto", description="Device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")
    dtype: Literal["experiment", "auto", "float32", "bfloat16", "float16"] = Field(
        "experiment", description="Number format of the backbone; `experiment`: model.dtype."
    )
    memory: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="Maximum GPU memory in GiB, if several silos share a GPU; empty: all free memory.",
    )
    keep: Annotated[float, Field(ge=0)] = Field(
        900.0,
        description="Time in seconds that the model stays loaded without a task; `inf`: always. Silos that share a GPU "
        "release its memory sooner with a smaller value.",
    )
    threads: PositiveInt | None = Field(
        None, description="Number of CPU threads; empty: the experiment's, at most one per core."
    )
    reuse_gib: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0,
        description="Maximum GiB, in memory or in a temporary file, for the states of frozen layers that an experiment "
        "asks to keep (model.reuse); 0: none are kept.",
    )


class SecureSection(Section):
    """Secure sums (privacy.noise_by=sum): the other silos' keys."""

    peers: dict[str, str] = Field(
        {},
        max_length=1000,
        description="Public key of each other silo's node by its name, as in nodes/NAME.pub of the deployment. With any "
        "here, a run with an unknown silo or another key is refused; empty: the server relays the keys, and could read "
        "single updates if it were dishonest.",
    )

    @field_validator("peers")
    @classmethod
    def _check_peers(cls, value: dict[str, str]) -> dict[str, str]:
        try:
            return {
                name: node_key_of(line, f"secure.peers.{name}").line for name, line in value.items()
            }
        except KeyProblem as error:
            raise ValueError(str(error)) from None


class SiloConfig(Section):
    """Config of one silo."""

    name: Annotated[str, Field(pattern=r"^[^\x00-\x1f/\\]{1,64}$")] = Field(
        description="Name of the silo in the federation and in its ledger."
    )
    ledger: str = Field(
        "ledger.sqlite",
        description="Path of the silo's ledger, relative to this file. Keep it as long as the data.",
    )
    log: str | None = Field(
        "rounds.jsonl",
        description="Log of each round for the silo only (clipped gradients, ...); empty text: none.",
    )
    cache: str | None = Field(
        None,
        description="Folder for converted models, codecs and calibrations, and for the hub's files; "
        "relative to this file. Empty: FEDLLM_CACHE and HF_HOME, or their defaults.",
    )
    state: str = Field(
        "state",
        description="Folder with the last known head of the ledger, relative to this file. Do not restore it together with "
        "a ledger from a backup: it reveals that the restored ledger is older.",
    )
    approved: str = Field(
        "approved.json",
        description="List of bundles that the node may run (`fedllm deploy approve`).",
    )
    key: str = Field(
        "node.key",
        description="The node's private key; it signs the extracts of the ledger for the report.",
    )
    extract: Literal["events", "epsilon", "none"] = Field(
        "events",
        description="Signed content for the report: this run's `events` with their cost, which the server recomputes; "
        "`epsilon` only; or `none`: then the report states nothing for this silo.",
    )
    data: DataSection
    budget: BudgetSection
    limits: Limits = Limits()
    model: ModelSection = ModelSection()
    secure: SecureSection = SecureSection()

    @model_validator(mode="after")
    def _check(self) -> SiloConfig:
        if self.budget.unit == "example" and self.budget.relation == "replace-one":
            raise ValueError(
                "Expected budget.relation=zero-out for budget.unit=example (amplification by Poisson "
                "sampling is stated for it), got budget.relation=replace-one"
            )
        self._check_secret_number()
        if self.budget.colluding and self.budget.against != "sum-only":
            raise ValueError(
                "Expected budget.against=sum-only for budget.colluding (who sees every message learns nothing more from other "
                f"silos), got budget.colluding={self.budget.colluding} with budget.against={self.budget.against}"
            )
        if "none" in self.limits.mechanisms and self.budget.epsilon < math.inf:
            raise ValueError(
                "Expected budget.epsilon=inf to allow limits.mechanisms=none (training without a guarantee "
                f"spends any budget), got budget.epsilon={self.budget.epsilon:g}"
            )
        if "duplicate" in self.limits.quantities and self.budget.epsilon < math.inf:
            raise ValueError(
                "Expected budget.epsilon=inf to allow limits.quantities=duplicate (it leaves without a "
                f"guarantee), got budget.epsilon={self.budget.epsilon:g}"
            )
        return self

    def _check_secret_number(self) -> None:
        """Refuse a budget for adding or removing where the number is no secret."""
        if self.budget.relation != "add-or-remove-one":
            return
        if self.budget.unit == "client":
            raise ValueError(
                "Expected budget.relation=zero-out for budget.unit=client (the server sees that the silo takes "
                "part; the numbers are the same), got budget.relation=add-or-remove-one"
            )
        if "size" in self.limits.quantities:
            raise ValueError(
                "Expected budget.relation=zero-out (the same numbers), or no `size` among limits.quantities: "
                "where the number of examples may leave, no epsilon holds for adding or removing one; got "
                "budget.relation=add-or-remove-one"
            )

    @property
    def kept_heads(self) -> tuple[Path, ...]:
        """Files with heads of the silo's ledger, away from it (:mod:`privacy.ledger.heads`)."""
        name = hashlib.sha256(self.name.encode()).hexdigest()[
            :12
        ]  # a name may hold what no file may
        return (Path(self.state) / f"ledger-{name}.head",)

    def identity(self) -> NodeIdentity:
        """Return the node's key, and the keys of its peers."""
        return NodeIdentity(Path(self.key), tuple(sorted(self.secure.peers.items())))

    def local_policy(self) -> LocalPolicy:
        """Return budget and limits in the form that the silo's account enforces."""
        budget, limits = self.budget, self.limits
        return LocalPolicy(
            epsilon=budget.epsilon,
            delta=budget.delta,
            unit=budget.unit,
            relation=budget.relation,
            accountant=budget.accountant,
            against=budget.against,
            colluding=budget.colluding,
            rounds=limits.rounds,
            noise_multiplier=limits.noise_multiplier,
            sampling_rate=limits.sampling_rate,
            parameter_norm=limits.parameter_norm,
        )


def load_silo(path: str | Path) -> SiloConfig:
    """Read and check a silo's file; its paths become absolute.

    Raises:
        SiloConfigError: no such file, no TOML, or a key or value that is not accepted; one line a problem.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SiloConfigError(f"Expected the silo config, got {file}: {error}") from None
    return _parsed(text, str(file), file.resolve().parent)


@lru_cache(maxsize=8)
def _parsed(text: str, source: str, folder: Path) -> SiloConfig:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SiloConfigError(f"{source} is not valid TOML: {error}") from None
    try:
        silo = SiloConfig.model_validate(tree)
    except ValidationError as error:
        lines = dict.fromkeys(f"{source}: {_sentence(problem)}" for problem in error.errors())
        raise SiloConfigError("\n".join(lines)) from None
    places: dict[str, Any] = {
        key: None if not value else _absolute(value, folder)
        for key in ("ledger", "state", "log", "cache", "approved", "key")
        for value in (getattr(silo, key),)
    }
    data = silo.data.model_copy(update={"path": _absolute(silo.data.path, folder)})
    model = silo.model
    if model.path is not None:
        model = model.model_copy(update={"path": _absolute(model.path, folder)})
    return silo.model_copy(update=places | {"data": data, "model": model})


def silo_config_of(node_config: Mapping[str, Any]) -> SiloConfig | None:
    """Return the silo's file of this node; None if the node has none (simulation).

    Raises:
        SiloConfigError: as :func:`load_silo`.
    """
    place = os.environ.get(ENVIRONMENT) or str(node_config.get(NODE_KEY, ""))
    return load_silo(place) if place else None


def template(name: str, *, epsilon: float = 3.0, delta: float = 1e-5) -> str:
    """Return a silo's file to begin with: every key with what it means, as TOML."""
    tree = {
        "name": name,
        "data": {"path": "records.jsonl", "labels": ("negative", "neutral", "positive")},
        "budget": {"epsilon": epsilon, "delta": delta},
        "limits": {"quantities": ("update", "size")},
    }
    silo = SiloConfig.model_validate(tree)
    lines = [
        "# What this silo brings to a federation, and how far it goes. It stays on this machine; the silo's",
        "# client holds every run against it, and no server can change it.",
        "",
    ]
    lines += _documented(
        silo, ("name", "ledger", "state", "log", "cache", "approved", "key", "extract")
    )
    for section in ("data", "budget", "limits", "model", "secure"):
        part = getattr(silo, section)
        summary = (type(part).__doc__ or "").strip().splitlines()[0]
        lines += ["", f"# {summary}", f"[{section}]"]
        lines += _documented(part, type(part).model_fields)
    return "\n".join(lines) + "\n"


def _documented(section: BaseModel, keys: Iterable[str]) -> list[str]:
    import tomli_w

    lines = []
    for key in keys:
        value = getattr(section, key)
        lines.append(f"# {type(section).model_fields[key].description}")
        if value is None or value == {}:
            lines.append(f"# {key} =")
        else:
            plain = list(value) if isinstance(value, tuple) else value
            written = tomli_w.dumps({key: plain}).strip()
            lines.append(re.sub(r"\s*\n\s*", " ", written).replace(", ]", "]").replace("[ ", "["))
    return lines


def _absolute(path: str, folder: Path) -> str:
    return str(folder / Path(os.path.expandvars(os.path.expanduser(path))))


def _sentence(problem: Any) -> str:
    """Describe the fault, with the key's name first, and the nearest known key if it is unknown."""
    parts = [str(part) for part in problem["loc"]]
    key = ".".join(part for part in parts if not part.isdigit())
    if problem["type"] == "extra_forbidden":
        model: Any = SiloConfig
        for part in parts[:-1]:
            model = model.model_fields[part].annotation
        known = list(model.model_fields)
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"Expected a known key, got {key}; {hint}"
    if problem["type"] == "missing":
        return f"Expected {key}, got none"
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    return f"Expected {key}: {problem['msg']}; got {problem['input']!r}"
