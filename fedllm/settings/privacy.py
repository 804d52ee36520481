"""The settings of section ``[privacy]``: the guarantee, its bounds, and each silo's own values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedllm.settings.section import PositiveFloat, PositiveInt, Rate, Section
from privacy.events.views import MOST_COLLUDING

Colluding = Annotated[
    tuple[Annotated[int, Field(gt=0, le=1_000_000)], ...], Field(max_length=MOST_COLLUDING)
]

Share = Annotated[float, Field(gt=0, lt=1)]


class SiloSettings(Section):
    """Overrides for one silo; empty values are the run's (``privacy.*``, ``client.*``)."""

    epsilon: PositiveFloat | None = Field(
        None, description="Replaces privacy.epsilon for this silo."
    )
    run_epsilon: PositiveFloat | None = Field(
        None, description="Replaces privacy.run_epsilon for this silo."
    )
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Replaces privacy.delta for this silo."
    )
    batch_size: PositiveInt | None = Field(
        None,
        description="Expected batch size and divisor; replaces client.batch_size for this silo.",
    )
    sampling_rate: Rate | None = Field(
        None, description="Replaces client.sampling_rate for this silo."
    )


class PrivacySettings(Section):
    """The privacy guarantee and the mechanism that provides it."""

    mode: Literal["dp", "none"] = Field(
        "dp",
        description="`dp` trains with differential privacy. `none` trains without clipping and noise, for comparison; the "
        "report's first line then states that there is no guarantee.",
    )
    unit: Literal["example", "client"] = Field(
        "example",
        description="Privacy unit: one example (local DP-SGD; holds against the server), or all data of one silo (the "
        "update is clipped).",
    )
    epsilon: PositiveFloat | None = Field(
        3.0,
        description="Upper bound of each silo's epsilon over all runs on its ledger, including this run. The noise is "
        "calibrated to use it up.",
    )
    run_epsilon: PositiveFloat | None = Field(
        None,
        description="Upper bound of each silo's epsilon in this run alone, in addition to `epsilon`. The noise is "
        "calibrated to the tighter bound, and a step that would exceed either is not taken. Empty: no such "
        "bound.",
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="Delta of both bounds.")
    noise_multiplier: PositiveFloat | None = Field(
        None,
        description="Noise multiplier (standard deviation over sensitivity), given by hand instead of calibrated from "
        "epsilon. If epsilon is set too, the budget still stops the run. Mechanism lmo: the multiplier of the "
        "Gaussian noise with the same guarantee.",
    )
    spare_rounds: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Extra rounds (and evaluations by the silos) in a run's plan, in addition to server.rounds, for rounds "
        "that are repeated with fresh noise after a crash. Their cost is part of the plan, used or not. With "
        "0, a repeated round takes the place of the last one.",
    )
    mechanism: Literal["gaussian", "lmo"] = Field(
        "gaussian",
        description="Noise of the vectors that training releases. `lmo` uses the noise in `noise`, scaled to the same "
        "proven guarantee as Gaussian noise; it is for comparison, because its standard deviation is then at "
        "least 1.8 times as large.",
    )
    noise: str | None = Field(
        None,
        description="Mechanism lmo: JSON file with the noise (parameters of LMO-DP, or the output of `fedllm "
        "noise-search`), relative to the settings file; or the JSON text itself.",
    )
    noise_scale: PositiveFloat | None = Field(
        None,
        description="Mechanism lmo: factor on the file's noise, in units of the clipping norm, instead of calibration. 1 "
        "uses a parameter file as the paper does; the ledger records its true cost.",
    )
    clip: PositiveFloat = Field(
        0.5,
        description="L2 clipping norm of an example's gradient (unit example) or of a silo's update (unit client).",
    )
    prefix_scale: PositiveFloat = Field(
        1.0,
        description="Unit example: factor on the prefix's gradient before clipping; it is divided out after the noise. "
        "Below 1, the head gets more of the clipping norm and the prefix more of the noise. The guarantee does "
        "not change.",
    )
    noise_by: Literal["client", "server", "sum"] = Field(
        "client",
        description="Party that adds the noise. `client` (local DP) protects against the server. `sum`: each silo adds a share, "
        "and sends a masked integer vector of which the server learns the sum over the silos alone ([secure]); epsilon is "
        "then stated against a server that learns sums only, and assumes secure cryptography. `server` (central DP; unit "
        "client) requires a trusted server and protects against outsiders only.",
    )
    relation: Literal["zero-out", "add-or-remove-one", "replace-one"] = Field(
        "zero-out",
        description="Neighbouring relation of the guarantee. `zero-out`: one example (or all data of one silo) is replaced "
        "by an empty one; the number of examples (or the set of participants) is public. `add-or-remove-one`: "
        "one example is added or removed, at the same epsilon; requires unit example and data.sizes=private. "
        "`replace-one`: one silo's data are replaced by any other; requires unit client.",
    )
    accountant: Literal["pld", "rdp"] = Field(
        "pld", description="Accountant that calibrates the noise and stops the run."
    )
    ledger: str | None = Field(
        None,
        description="Path of a ledger shared by several runs on the same data, whose costs then compose. Empty: a new "
        "ledger in the run folder.",
    )
    randomness: Literal["seeded", "os"] = Field(
        "os",
        description="Source of noise and sampling. `os`: AES-256-CTR under keys from the operating system. `seeded`: "
        "reproducible from `seed`; the guarantee then holds only against an adversary who does not know the "
        "seed, and the report states this.",
    )
    colluding: Literal["others"] | Colluding = Field(
        "others",
        description="Numbers m of silos that may collude with the server against another silo; the ledger and the report "
        "state the guarantee for each. `others`: all other silos.",
    )
    silos: dict[str, SiloSettings] = Field(
        {},
        description="Per-silo values of epsilon, run_epsilon, delta, batch_size and sampling_rate: one table "
        '[privacy.silos."NAME"] per silo. Each silo is calibrated, and stops, separately.',
    )

    def _check_mechanism(self) -> None:
        if self.mechanism == "lmo" and self.noise is None:
            raise ValueError(
                "Expected privacy.noise, a file with the noise, for privacy.mechanism=lmo, got none"
            )
        if self.mechanism == "gaussian":
            for name in ("noise", "noise_scale"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(
                        f"Expected privacy.mechanism=lmo for privacy.{name}, got "
                        f"privacy.{name}={value} with privacy.mechanism=gaussian"
                    )
        if self.noise_scale is not None and self.noise_multiplier is not None:
            raise ValueError(
                "Expected privacy.noise_scale or privacy.noise_multiplier, got both: "
                f"{self.noise_scale:g} and {self.noise_multiplier:g}"
            )

    @model_validator(mode="after")
    def _check(self) -> PrivacySettings:
        given = (self.epsilon, self.run_epsilon, self.noise_multiplier, self.noise_scale)
        if self.mode == "dp" and all(value is None for value in given):
            raise ValueError(
                "Expected privacy.epsilon, privacy.run_epsilon or privacy.noise_multiplier for "
                "privacy.mode=dp, got none of them"
            )
        self._check_mechanism()
        if self.unit == "example" and self.noise_by == "server":
            raise ValueError(
                "Expected privacy.noise_by=client or sum for privacy.unit=example (per-example clipping and "
                "noise happen at the silo), got privacy.noise_by=server"
            )
        for name, own in self.silos.items():
            targets = {k: getattr(own, k) for k in ("epsilon", "run_epsilon", "delta")}
            mine = [f"{k}={value:g}" for k, value in targets.items() if value is not None]
            if mine and self.noise_by == "server":
                raise ValueError(
                    f"Expected no targets of its own for the silo {name!r} with "
                    "privacy.noise_by=server (one noise protects all silos), got "
                    f"privacy.silos.{name}: {', '.join(mine)}"
                )
        if self.unit == "client" and self.prefix_scale != 1.0:
            raise ValueError(
                "Expected privacy.prefix_scale=1 for privacy.unit=client, "
                f"got privacy.prefix_scale={self.prefix_scale}"
            )
        return self


class ClippingSettings(Section):
    """A fixed clipping norm, or one that follows a quantile of the norms."""

    form: Literal["fixed", "adaptive"] = Field(
        "fixed",
        description="`fixed` uses privacy.clip in every round. `adaptive` starts from privacy.clip; after each round the "
        "server updates the norm from a noisy count of the gradients (unit example) or updates (unit client) "
        "that are not longer than it. The counts are events in the ledger. Without privacy nothing is clipped.",
    )
    quantile: Share = Field(
        0.5, description="Target share of norms that are at most the clipping norm."
    )
    learning_rate: PositiveFloat = Field(
        0.2, description="Learning rate of the norm's logarithm, and its largest change per round."
    )
    count_share: Share = Field(
        0.01,
        description="Share p of the noise's cost (1/z^2) that is spent on the counts. The sum then gets 1/sqrt(1-p) times "
        "the noise multiplier z, and the count of B expected records an error of z/(2 sqrt(p) B).",
    )


class SecureSettings(Section):
    """Secure aggregation, with privacy.noise_by = "sum"."""

    drop_outs: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Number t of silos that may be missing in a round. With 0 a round has one message per silo, and a "
        "missing silo loses the round. Above 0 each round has a second, small exchange, and the others add more noise. "
        "More than twice as many silos have to be neither missing nor colluding: 2 t < n - `colluding`.",
    )
    colluding: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Number of other silos that may give the server their noise and keys. epsilon is calibrated and "
        "kept to against the server together with so many silos.",
    )
    bits: Literal[32, 64] = Field(
        64,
        description="Bits of each integer that is sent. 32 halves the message, and refuses large models and much noise, for "
        "which there is no room.",
    )
