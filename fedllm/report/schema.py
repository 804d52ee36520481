"""The schema of ``report.json``: typed models, and from them a JSON Schema (draft 2020-12)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION = 4
SCHEMA_ID = f"urn:fedllm:report:{VERSION}"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Real = float | Literal["Infinity", "-Infinity", "NaN"]
"""A number; what JSON has no number for is a text, as in protobuf's JSON mapping."""


class Part(BaseModel):
    """Base of all parts: other keys are refused."""

    model_config = ConfigDict(extra="forbid")


class GuaranteePart(Part):
    """The statement of the report's first line, in words and as values."""

    level: Literal[
        "guaranteed",
        "not-as-asked",
        "conditional",
        "if-fixed",
        "outsider-only",
        "some-silos",
        "none",
        "unknown",
        "nothing-released",
    ] = Field(
        description="guaranteed; not-as-asked: at another epsilon than the settings name; conditional: only against those who do not know the seed of the "
        "noise; if-fixed: only if what was released was fixed beforehand, since no budget was held over it; outsider-only: none against the server; some-silos: none for the silos whose ledgers nothing vouches for, what holds for the others is in the sentence and under silos; none: no guarantee; unknown: what would tell "
        "is missing or damaged, no epsilon is stated; nothing-released: no data was used yet."
    )
    sentence: str
    epsilon: Real = Field(
        description="Largest over the silos; Infinity where nothing is guaranteed."
    )
    delta: float
    unit: Literal["example", "client"]
    relation: Literal["zero-out", "add-or-remove-one", "replace-one"]
    adversary: str = Field(description="outsider, server, or colluding:m.")
    accountant: str
    bound: bool = Field(description="Whether epsilon is a proven upper bound.")
    reasons: list[str]
    others: dict[str, Real] = Field(description="Adversary to the largest epsilon over the silos.")


class RunPart(Part):
    """Which run, and how far it came. Null: not known, since the file is lost."""

    folder: str
    name: str
    run_id: str | None
    status: str
    round: int
    rounds: int | None
    message: str | None
    created: str | None
    updated: str | None
    silos: list[str] = Field(description="Names in silos.json.")


class FigurePart(Part):
    """One accountant's answer."""

    accountant: str
    epsilon: Real | None = Field(description="Null: the accountant cannot represent an event.")
    bound: bool
    mu: Real | None
    note: str


class AdversaryPart(Part):
    """A silo's figures against one adversary."""

    headline: FigurePart
    figures: list[FigurePart] = Field(description="Of what was released so far.")
    held: FigurePart | None = Field(
        None,
        description="What holds where it is not the headline: the run's plan (accountant plan) or the budget that a "
        "filter kept (accountant filter); its epsilon is null where the headline holds under the condition in note alone.",
    )
    reasons: list[str] = Field(description="Why there is no guarantee; empty where there is one.")


class TrainingMechanismPart(Part):
    """Steps of this run with one sampling rate and noise."""

    sampling_rate: Real
    noise_multiplier: Real
    steps: int


class SiloTargetPart(Part):
    """What a silo's settings aim at."""

    epsilon: Real | None = Field(description="For all runs on the ledger together.")
    run_epsilon: Real | None = Field(description="For this run alone.")
    delta: float | None
    spent: Real | None = Field(
        description="Epsilon against the server at the silo's delta; null where that is the report's."
    )


class SiloPart(Part):
    """What one silo's data was used for, and what that costs."""

    silo: str
    examples: int | None = Field(description="Null where private or not known.")
    left: Any = Field(description="Why the silo left the run, or null.")
    rounds: int
    trainings: list[TrainingMechanismPart]
    rows: int
    rows_of_other_runs: int
    target: SiloTargetPart
    adversaries: dict[str, AdversaryPart]


class RoundCurvesPart(Part):
    """Epsilon by round of some silos: lists of [round, epsilon]."""

    adversary: str
    silos: dict[str, list[tuple[int, Real]]]
    left_out: int


class CopiesCostPart(Part):
    """What one number of copies costs, by PLD."""

    copies: int
    epsilon: Real | None = Field(description="Null: nothing is proven; see note.")
    note: str


class CopiesPart(Part):
    """What the removal of all copies of one record costs, of the silo with the largest epsilon."""

    silo: str
    adversary: str
    accountant: Literal["pld"]
    costs: list[CopiesCostPart]


class PrivacyCurvesPart(Part):
    """The whole privacy curve of the silo with the largest epsilon."""

    silo: str
    adversary: str
    accountant: str
    mu: float | None = Field(description="The dominating mu.")
    mu_floor: float | None = Field(description="The mu covers every delta above this.")
    epsilon_delta: list[tuple[float, float, float | None]] = Field(
        description="[epsilon, delta, delta of the dominating mu]"
    )
    trade_off: list[tuple[float, float, float | None]] = Field(
        description="[rate of false alarms, least rate of missed detections, the same of the "
        "dominating mu]"
    )


class MeaningPart(Part):
    """What the guarantee means to whoever tests for a record, in whichever silo."""

    adversary: str
    false_alarms: float = Field(description="Rate of false alarms of the test.")
    missed: float = Field(description="Least rate of missed detections at that rate.")


class AccountantPart(Part):
    """How far an accountant may be trusted."""

    name: str
    title: str
    bound: bool
    trust: str


class ReleasePart(Part):
    """One kind of released quantity."""

    owner: Literal["this run", "other runs"]
    purpose: str
    mechanism: str
    parameters: dict[str, tuple[float, float]] = Field(
        description="Least and greatest value of each parameter over these uses."
    )
    seen_by: list[str]
    silos: int
    rows: int
    uses: int


class MuPart(Part):
    """A parameter of Gaussian differential privacy."""

    mu: Real | None = Field(description="Null: no guarantee, or no accountant has one.")
    accountant: str | None
    exact: bool = Field(
        description="All events are Gaussian mechanisms without sampling, and mu is the root of the sum "
        "of their squares; else it is the dominating mu, a bound."
    )


class MuPartsPart(Part):
    """What this run spent of one silo, the one with the largest mu, by purpose."""

    adversary: str
    silo: str
    statistics: MuPart
    training: MuPart
    total: MuPart


class EncodingPart(Part):
    """How updates travel."""

    codec: str
    bits: int
    noise: Literal["before-encoding", "in-code"]
    downlink: str
    dimension: int | None = Field(description="Numbers of an update. Null: not known.")
    code_dimension: int | None
    bytes: int | None = Field(description="Of one update of one silo, as it travels.")
    float32_bytes: int | None = Field(description="Of the same update without a codec.")
    version: str | None = Field(description="SHA-256 of encoder and decoder.")
    prior: str | None
    prior_chance_of_noise: float | None = Field(
        default=None,
        description="Probability that noise alone gives statistics such as the codec was fitted to. Null: "
        "they have no noise, or it is not told.",
    )
    prior_version: str | None
    prior_source: Literal["private", "public"] | None = Field(
        description="Null: the codec is not fitted to anything."
    )
    statistics_silos: int | None = Field(description="Silos that released statistics for it.")
    mu: list[MuPartsPart]


class LayerStepPart(Part):
    """One measurement of the layers' sharpness."""

    candidates: list[int] = Field(description="Layers with a prefix before it.")
    mean: list[Real] = Field(description="Score of each, as released: the mean over the silos.")
    noise_std: Real = Field(description="Of the privacy noise in each mean score.")
    dropped: list[int]
    margin: Real = Field(description="The lowest score kept minus the highest dropped.")
    silos: int = Field(description="That released scores; 0 where public text was measured.")
    seconds: float
    bytes: int


class LayerMuPart(Part):
    """What this run spent of one silo, the one with the largest mu, by purpose."""

    adversary: str
    silo: str
    scores: MuPart
    training: MuPart
    total: MuPart


class LayersPart(Part):
    """The choice of the layers that keep their prefix. Null: not known, or not yet chosen."""

    form: Literal["public", "private", "private-top-k", "paper"]
    measure: Literal["ascent", "example-ascent", "random"]
    search: Literal["one-shot", "greedy"]
    radius: float
    round: int | None = Field(description="Rounds of training before the choice.")
    layers: list[int] | None = Field(description="Layers to choose from.")
    kept: list[int] | None
    steps: list[LayerStepPart]
    mu: list[LayerMuPart]


class PublicTeacherPart(Part):
    """What the server trained on public text before the first round."""

    examples: int = Field(description="Public examples.")
    steps: int
    left_out_in_evaluation: int = Field(description="Public texts that the server evaluates on.")
    in_silos: int = Field(description="Public examples that a silo of the simulation has too.")
    evaluation: dict[str, Real] = Field(
        description="Of the teacher itself, on the server's examples."
    )
    sha256: str


class TeacherPart(Part):
    """The teacher that pulled the model on the server after each aggregation."""

    kind: Literal["ema", "public", "nonprivate"]
    guarantee: bool = Field(description="Whether the guarantee is the one without it.")
    sentence: str
    strength: float
    steps: int = Field(description="On the server after each aggregation.")
    learning_rate: float
    decay: float | None
    distillation: float
    temperature: float | None
    start: int = Field(description="First rounds without it.")
    rounds: int = Field(description="Rounds in which it pulled.")
    seconds: float = Field(description="On the server, in all rounds.")
    last_distance: Real | None = Field(
        description="Norm of model minus teacher before the last pull."
    )
    last_divergence: Real | None = Field(
        description="Of the answers on public text before the last pull; null without distillation."
    )
    public: PublicTeacherPart | None


class MembershipPart(Part):
    """A measured attack on the model: no guarantee, and no bound."""

    attack: str
    auc: Real = Field(description="0.5 is guessing.")
    low: Real = Field(description="Of the 95% confidence interval of the AUC.")
    high: Real
    runs: int = Field(description="Models that it was measured on.")
    label: str | None = Field(description="What its author says of it.")


class LmoCostPart(Part):
    """Epsilon of LMO noise on a vector, by three accounts."""

    claimed: Real = Field(
        description="By LMO-DP's published accounting, of one number at the best order, existing or not, "
        "without sampling. No bound of anything."
    )
    order: int
    order_exists: bool
    spread: Real = Field(
        description="Of a change spread over many coordinates, in the limit: about what is truly spent."
    )
    bound: Real = Field(description="Proven for every change; what the ledger counts.")


class LmoPart(Part):
    """LMO noise: what is claimed beside what is true, of the silo with the least noise."""

    silo: str
    parameters: dict[str, float] = Field(description="In units of the clipping norm.")
    delta: float
    steps: int
    sampling_rate: Real
    std: Real = Field(description="Of each coordinate's noise over the clipping norm.")
    gaussian_std: Real = Field(description="Of the Gaussian noise that truly costs as much.")
    largest_order: Real = Field(description="Orders below this exist.")
    step: LmoCostPart = Field(description="One step, without sampling.")
    training: LmoCostPart = Field(description="All steps; the claim without sampling.")
    published: Real = Field(
        description="What the authors' code says of all steps with sampling: the cost of the Gaussian that "
        "the classical formula gives for one step's claim. No bound of anything."
    )


class SeenPart(Part):
    """What one party sees of a silo's data."""

    who: str
    what: str
    covered: bool = Field(description="Whether epsilon bounds what it tells, or there is nothing.")


class NumberNoisePart(Part):
    """The noise on a silo's numbers, in units of the clipping norm, of the silo with the least."""

    silo: str
    family: str
    parameters: dict[str, float]
    releases: int = Field(description="Numbers, or vectors of them, each with fresh noise.")
    sampling_rate: Real
    epsilon: Real | None = Field(description="Of these releases alone, by PLD.")
    std: Real
    mean_abs: Real
    gaussian_std: Real | None = Field(
        description="Of Gaussian noise in its place, at the same epsilon; null where that is not known."
    )
    gaussian_mean_abs: Real | None


class BlackBoxPart(Part):
    """Training through a model's outputs alone."""

    endpoint: bool = Field(description="Whether the model is behind an HTTP endpoint.")
    seen: list[SeenPart]
    directions: int = Field(description="Of a local step.")
    local_steps: int
    numbers: int = Field(description="Of one silo's message of a round.")
    smoothing: float
    scale: Literal["prefix", "one"]
    subspace: int = Field(description="Dimension; 0: all coordinates.")
    released: Literal["vector", "numbers"] = Field(
        description="vector: clipped and noised together; numbers: each by itself."
    )
    clip: float | None = Field(description="Of the vector in L2 norm, or of each number.")
    noise: NumberNoisePart | None = Field(description="Null: none was released with noise.")
    bytes_up: int = Field(description="Of one silo and round.")
    bytes_down: Real | None = Field(
        description="Mean over silos and rounds; null where nobody answered, or it is withheld."
    )


class TitledPart(Part):
    """A text with its title."""

    title: str
    text: str


class StepPart(TitledPart):
    """A text with its title and a command."""

    command: str


class LedgerPart(Part):
    """The ledger that every epsilon was computed from."""

    file: str
    shared: bool
    ok: bool = Field(description="Whether it could be read and its chain of hashes is whole.")
    rows: int
    rows_of_this_run: int
    runs: list[str]
    last_row: int | None
    last_hash: str | None
    problems: list[str]


class BudgetPart(Part):
    """A silo's own budget over all runs on its ledger, as it states."""

    epsilon: Real
    delta: float
    unit: str
    relation: str
    accountant: str
    spent: Real | None = Field(
        description="Epsilon of all plans and releases, composed as if fixed beforehand; null: not accounted."
    )
    left: Real | None = Field(
        description="epsilon less spent; a later plan may take less, as a filter decides."
    )


class VouchingPart(Part):
    """What one silo of a deployed run vouches for: a signed extract of its ledger. Null: there is none."""

    silo: str
    vouches: bool = Field(description="Whether its extract counts; else nothing is known of it.")
    why: str = Field(description="Why it does not; empty where it does.")
    key: str | None = Field(
        description="Fingerprint of the registered node key, as ssh-keygen -l prints it."
    )
    sha256: str | None = Field(description="Of the extract's file.")
    final: bool = Field(description="Whether the silo answered at the end of the run.")
    made: str | None = Field(description="When, by the silo's clock.")
    rows: int | None = Field(description="Of the whole ledger.")
    hash: str | None = Field(description="Of its last row.")
    events: Literal["sent", "kept"] | None = Field(
        description="sent: the figures were computed again from them; kept: they are the silo's word."
    )
    rows_of_run: int | None
    rows_of_other_runs: int | None
    other_runs: int | None
    budget: BudgetPart | None
    adoptions: list[str] = Field(
        description="When and why its people went on deliberately with a ledger that was restored, copied or lost: what "
        "was released before and is not in it is counted nowhere."
    )
    disagreements: list[str] = Field(
        description="Where its figures are not those of its events. The larger are stated."
    )


class TargetPart(Part):
    """What the settings aimed at."""

    epsilon: Real | None
    delta: float | None


class Report(Part):
    """The accounting report of one run."""

    format: Literal["fedllm-report"]
    version: Literal[4]
    schema_: Literal["urn:fedllm:report:4"] = Field(alias="schema")
    made: str
    made_by: str
    headline: str
    guarantee: GuaranteePart
    problems: list[str] = Field(description="What is missing or damaged in the run folder.")
    notes: list[str] = Field(description="What is unfinished.")
    run: RunPart
    silos: list[SiloPart]
    epsilon_by_round: RoundCurvesPart
    privacy_curves: PrivacyCurvesPart | None
    copies: CopiesPart | None = Field(
        description="What all copies of one record cost; null for unit client, or without a guarantee."
    )
    meaning: MeaningPart | None
    accountants: list[AccountantPart]
    releases: list[ReleasePart]
    encoding: EncodingPart | None = Field(description="Null: updates travel as they are.")
    layers: LayersPart | None = Field(description="Null: all layers of the settings were trained.")
    lmo: LmoPart | None = Field(description="Null: no vector was released with LMO noise.")
    black_box: BlackBoxPart | None = Field(description="Null: trained by gradients.")
    assumptions: list[TitledPart]
    not_covered: list[TitledPart]
    ledger: LedgerPart
    vouching: list[VouchingPart] | None = Field(
        description="Of a deployed run, whose ledgers are with the silos. Null: the ledger is here."
    )
    training: dict[str, Any] = Field(
        description="Evaluations, rounds, traffic, failures, perturbation of weights."
    )
    teacher: TeacherPart | None = Field(description="Null: no teacher.")
    membership: list[MembershipPart]
    target: TargetPart
    settings: dict[str, Any] | None = Field(description="As settings.toml; null where it is lost.")
    environment: dict[str, Any] | None
    reproduce: list[StepPart]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``report.json``."""
    schema = Report.model_json_schema(by_alias=True)
    return {"$schema": DIALECT, "$id": SCHEMA_ID, **schema}
