"""The settings of section ``[privacy]``: the guarantee, its bounds, and each silo's own values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedllm.settings.section import PositiveFloat, PositiveInt, Rate, Section
from privacy.events.views import MOST_COLLUDING

Colluding = Annotated[
    tuple[Annotated[int, Field(gt=0, le=1_000_000)], ...], Field(max_length=MOST_COLLUDING)
]


class SiloSettings(Section):
    """One silo's own values; what is empty is the run's (``privacy.*``, ``client.*``)."""

    epsilon: PositiveFloat | None = Field(None, description="Instead of privacy.epsilon.")
    run_epsilon: PositiveFloat | None = Field(None, description="Instead of privacy.run_epsilon.")
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Instead of privacy.delta."
    )
    batch_size: PositiveInt | None = Field(
        None, description="Expected batch size and divisor, instead of client.batch_size."
    )
    sampling_rate: Rate | None = Field(None, description="Instead of client.sampling_rate.")


class PrivacySettings(Section):
    """The guarantee, and the mechanism that gives it."""

    mode: Literal["dp", "none"] = Field(
        "dp",
        description="`none` trains without clipping or noise: for comparison; the report's "
        "first line says that there is no guarantee.",
    )
    unit: Literal["example", "client"] = Field(
        "example",
        description="What one record is: one example (local DP-SGD; holds against the "
        "server), or all of a silo's data (the update is clipped).",
    )
    epsilon: PositiveFloat | None = Field(
        3.0,
        description="Bound on each silo's epsilon over all runs on its ledger, this one included; "
        "the noise is calibrated to use it up.",
    )
    run_epsilon: PositiveFloat | None = Field(
        None,
        description="Bound on each silo's epsilon in this run alone, beside `epsilon`; the noise is "
        "calibrated to the tighter of the two, and a step that would exceed either is not taken.",
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="Delta of both bounds.")
    noise_multiplier: PositiveFloat | None = Field(
        None,
        description="Noise over sensitivity, given by hand instead of calibrated from epsilon; "
        "with epsilon the budget still stops the run. Mechanism lmo: of the Gaussian noise with "
        "the same guarantee.",
    )
    spare_rounds: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Rounds (and evaluations by the silos) that a run's plan holds beside server.rounds, for rounds "
        "that are repeated after a crash with fresh noise. They are part of the plan's cost, used or not; with 0 "
        "a repeated round takes the place of the last one.",
    )
    mechanism: Literal["gaussian", "lmo"] = Field(
        "gaussian",
        description="Noise on the vectors that training releases. `lmo`: that of `noise`, scaled to the "
        "same proven guarantee on vectors as Gaussian noise of the noise multiplier: for comparison, "
        "its standard deviation is then 1.8 times as large or more.",
    )
    noise: str | None = Field(
        None,
        description="Mechanism lmo: JSON file with the noise (parameters of LMO-DP, or what `fedllm "
        "noise-search` wrote), relative to the settings file; or the JSON itself.",
    )
    noise_scale: PositiveFloat | None = Field(
        None,
        description="Mechanism lmo: the file's noise times this, in units of the clipping norm, instead "
        "of calibrated: 1 is the paper's use of a parameter file, whatever it truly costs.",
    )
    clip: PositiveFloat = Field(
        0.5,
        description="L2 clipping norm, of an example's gradient "
        "(unit example) or of a silo's update (unit client).",
    )
    prefix_scale: PositiveFloat = Field(
        1.0,
        description="Unit example: the prefix's gradient is multiplied by this before clipping "
        "and divided after the noise: below 1 the head gets more of the clipping norm and the prefix "
        "more of the noise. The guarantee is the same.",
    )
    noise_by: Literal["client", "server"] = Field(
        "client",
        description="Unit client: who adds the noise. `client` holds against the server; "
        "`server` needs a trusted server and holds against outsiders only. Unit example: client.",
    )
    relation: Literal["zero-out", "add-or-remove-one", "replace-one"] = Field(
        "zero-out",
        description="Neighbouring relation of the guarantee. `zero-out`: one example (or all data of one silo) "
        "replaced by an empty one, the number of examples (or who takes part) being public. "
        "`add-or-remove-one`: one example more or less, at the same epsilon, where nobody learns how many "
        "there are: unit example with data.sizes=private. `replace-one`: replaced by any other; unit client.",
    )
    accountant: Literal["pld", "rdp"] = Field(
        "pld", description="Accountant that calibrates the noise and stops the run."
    )
    ledger: str | None = Field(
        None,
        description="Path of a ledger shared by several runs on the same data, which then "
        "compose. Empty: a ledger in the run folder.",
    )
    randomness: Literal["seeded", "os"] = Field(
        "os",
        description="`os`: noise and sampling from AES-256-CTR under keys from the operating system. "
        "`seeded`: from `seed`, reproducible; the guarantee then holds only against who does not "
        "know the seed, and the report says so.",
    )
    colluding: Literal["others"] | Colluding = Field(
        "others",
        description="Numbers m of silos that may collude with the server against another one: the "
        "ledger and the report state the guarantee for each. `others`: all but the one.",
    )
    silos: dict[str, SiloSettings] = Field(
        {},
        description="A silo's own epsilon, run_epsilon, delta, batch_size, sampling_rate, by name: "
        'a table [privacy.silos."NAME"] each. Each silo is calibrated, and stops, by itself.',
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
                "Expected privacy.noise_by=client for privacy.unit=example (per-example clipping and "
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
