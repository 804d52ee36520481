"""Assumptions and limits of the guarantee, for one run's settings."""

from __future__ import annotations

from fedllm.data.coupling import AS_DIVIDED, couplings, minor_couplings
from fedllm.data.public import EVALUATION_SHARE, evaluation_source
from fedllm.report.prose.secure_sum import EXACT_NOISE, noise_of_a_sum
from fedllm.report.sections.black_box import DIRECTIONS, ENDPOINT, clipping
from fedllm.report.sections.perturbation import meaning
from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from privacy.keystream import CIPHER

Item = tuple[str, str]

ROUNDING_CPU = "no bit of 240 clipped gradients of MiniLM in float32 and 32 in bfloat16 differed alone and among others"
"""Measured differences between clipped gradients alone and in batches; docs/results/attacks.md has the table."""

SETTINGS_LOST = [
    (
        "Not known",
        "The settings cannot be read. What was clipped, how examples were drawn, who added the noise and from "
        "which source it came is not known; each is an assumption of every epsilon below.",
    )
]
"""Assumption for a run whose settings are lost."""


def assumptions(settings: Settings, *, seeded: bool, runs: int) -> list[Item]:
    """Return (title, text) of each assumption.

    Args:
        seeded: whether any noise in the ledger came from a seed.
        runs: number of runs in the ledger.
    """
    privacy, client = settings.privacy, settings.client
    if privacy.mode == "none":
        text = "privacy.mode = none: nothing was clipped, no noise was added."
        return [("No mechanism", text)]
    in_code = settings.codec.active and settings.codec.noise == "in-code"
    black_box = settings.model.access == "black-box"
    items = [("Privacy unit", _unit(settings)), ("Neighbouring relation", _relation(settings))]
    if privacy.unit == "example":
        items.append(
            (
                "Sampling",
                "In every local step each silo draws each of its examples by itself with the stated "
                "sampling rate (Poisson sampling), and tells nobody which it drew. The guarantee "
                "uses this secrecy (amplification by sampling)."
                + (" Each direction has a draw of its own." if noises_numbers(settings) else "")
                + _cut(settings),
            )
        )
    if black_box:
        items.append(("Clipping", clipping(settings)))
        items.append(("Random directions", DIRECTIONS))
    elif privacy.unit == "example":
        items.append(
            (
                "Clipping",
                f"Each example's gradient, over all trained tensors together"
                f"{', is encoded and its code' if in_code else ','} is clipped to L2 norm "
                f"{_clip(settings)}; a gradient that is not finite counts as zero. The sum is "
                f"divided by the constant {client.batch_size}, not by the number drawn.",
            )
        )
    else:
        items.append(
            (
                "Clipping",
                f"Each silo's update of a round{', as its code,' if in_code else ''} is clipped to L2 norm {_clip(settings)} before noise "
                "is added. Updates are averaged with equal weights, which do not depend on data.",
            )
        )
    if settings.awp.form != "none":
        items.append(("Perturbed weights", meaning(settings)))
    items.append(("Who adds the noise", _noise(settings)))
    items.append(("Source of randomness", _randomness(seeded)))
    used_for = _uses_of_public_text(settings)
    if used_for:
        items.append(
            (
                "Public text",
                f"The text of [public] (public.source = {settings.public.source}) holds no record of a "
                f"silo's data. It was used for {used_for}, without noise, and nothing protects it.",
            )
        )
    if privacy.noise_by == "sum":
        items.append(("Noise in integers", EXACT_NOISE))
    items.append(
        (
            "Floating-point noise",
            "The theorems are about real numbers; the noise is drawn in 64-bit floating point. It is "
            "summed from four independent draws (Holohan and Braghin, 2021), against attacks that "
            "invert the sampler (Mironov, 2012), and the noisy value is rounded to a fixed grid of about "
            "2^-16 of the noise's standard deviation, against attacks that read the low-order bits "
            "(Haney et al., 2022). This stops the attacks that were tried; it is not a proof.",
        )
    )
    if privacy.unit == "example":
        items.append(
            ("Rounding between examples", _rounding(settings.model.device, settings.codec.active))
        )
    items.append(("Sizes of the silos", _sizes(settings)))
    items.append(_side_channels(settings))
    items.append(
        (
            "Honest execution",
            "Each silo runs the published client code on its own machine, and writes its ledger "
            "before it sends anything. A silo that runs other code loses its own guarantee only"
            + (
                ", not that of the others."
                if privacy.noise_by == "client"
                else "; of a sum, its share of the noise is missing for the others as well: count it among secure.colluding."
                if privacy.noise_by == "sum"
                else "; the server, which adds the noise, must do so honestly."
            ),
        )
    )
    items.append(
        (
            "Public inputs",
            "The names of the silos and of the classes, the prompt and phrase, the settings, the "
            "schedule of rounds and the pretrained model are public and hold nothing of the data "
            "protected here.",
        )
    )
    divided = _division(settings)
    if divided:
        items.append(("Division of the data", divided))
    items.append(("Copies of a record", _copies(settings)))
    if runs > 1:
        items.append(
            (
                "Shared ledger",
                f"The ledger holds {runs} runs. Their uses of a silo's data compose by the silo's "
                "name: the epsilon stated is for all of them together. Each run's plan was fixed with its first "
                "release and counts as a whole; a later run may have been chosen after an earlier one's output, "
                "and what holds then is the budget that a privacy filter kept, not the epsilon spent so far. A "
                "budget that is itself changed in view of an output is not covered. A silo under another name "
                "(another partition of the same data) would not be recognised.",
            )
        )
    return items


def _rounding(device: str, in_codes: bool) -> str:
    """Describe the remaining dependence of an example on its batch mates, with its number."""
    text = (
        "The sensitivity takes an example's gradient to be a function of that example. It is computed in shapes that "
        "its own length decides, and nothing of a batch mate enters it but by rounding. The sensitivity counts "
        "rounding as 0. "
    )
    if in_codes:
        text += (
            "Rounding in the projection to a code, before the code is clipped, was not measured. "
        )
    if device in ("auto", "cpu"):
        text += (
            f"On a CPU {ROUNDING_CPU} (python -m simulations.attacks.batch_mates.rounding); other processors and "
            "versions of libraries may round otherwise. "
        )
    if device != "cpu":
        text += "On a GPU the number of rows is fixed as well, and rounding was not measured. "
    return text.strip()


def _division(settings: Settings) -> str:
    """Describe the effect on the guarantee of partition steps in which one record moves others; empty without them."""
    steps = couplings(settings.data) | minor_couplings(settings.data)
    if not steps:
        return ""
    said = "; ".join(f"{setting}: {why}" for setting, why in steps.items())
    return f"{AS_DIVIDED}: there one record may move others ({said}). A silo that brings its own data is not divided."


def _cut(settings: Settings) -> str:
    most = settings.client.max_batch
    if most is None:
        return ""
    return (
        f" Of a sample of more than {most} examples {most} are kept, chosen uniformly at random; the truncated "
        "sample is what is accounted (arXiv 2508.15089), with the silo's public number of examples."
    )


def _side_channels(settings: Settings) -> Item:
    """Describe the information in the time, size and presence of a reply."""
    text = (
        "When a reply comes, how long it took, its size and whether there is one are not part of the guarantee. "
        "An example that raises counts as zero and its step releases its noise all the same; a silo answers a "
        "task after its row is written, or says one constant sentence. What remains: a process that is "
        "killed, a machine that is lost or out of memory gives no answer, and "
    )
    if settings.client.max_batch is None:
        text += (
            "the time of a step depends on the number and the lengths of the examples that it draws. Whoever "
            "measures it learns of them (client.max_batch gives all steps one shape)."
        )
    else:
        text += (
            "an example that raises is computed a second time. Otherwise each step computes the same shapes "
            "(client.max_batch), whatever it draws."
        )
    if settings.model.reuse != "off":
        text += (
            f" With model.reuse={settings.model.reuse} a step is also shorter for examples that were drawn before. The "
            "amplification by sampling assumes that nobody learns which examples a step draws."
        )
    return "Time and size of replies", text


def _clip(settings: Settings) -> str:
    """Return the clipping norm in words."""
    first = f"{settings.privacy.clip:g}"
    if settings.clipping.form == "fixed":
        return first
    return (
        f"C, which starts at {first} and which the server moves after each round by a noisy count of the "
        "norms that are at most C (the noise is scaled with C; sum and count together have the stated noise "
        "multiplier)"
    )


def not_covered(settings: Settings) -> list[Item]:
    """Return (title, text) of what no number in the report speaks about."""
    evaluation, data = settings.evaluation, settings.data
    items: list[Item] = []
    held = {
        "validation": f"The server's evaluation examples ({data.validation})",
        "holdout": f"The {data.holdout:.0%} of the examples that were held out of all silos (chosen by a "
        "hash of the text)",
        "public": f"The {EVALUATION_SHARE:.0%} of the public text that the server evaluates on (chosen by a hash "
        "of the text)",
    }.get(evaluation_source(data, settings.public))
    if held is not None:
        text = (
            f"{held} are known to the server, and the metrics on them are exact. They never train, "
            "and nothing here protects them."
        )
        items.append(("Evaluation data", text))
    if settings.endpoint.active:
        items.append(("What the endpoint sees", ENDPOINT))
    if evaluation.clients == "private":
        items.append(
            (
                "Silos' own evaluation",
                "The silos' accuracy counts are noisy releases and are in the ledger; the noisy "
                "metrics may be off.",
            )
        )
    items += [
        (
            "Choice of hyper-parameters",
            "Settings chosen by looking at results on the same data (trials in other ledgers) are "
            "not counted. Trials that share this ledger are.",
        ),
        (
            "Pretraining",
            "What the pretrained model learned before, which may include texts of this kind, is not "
            "protected.",
        ),
        (
            "Inference about the population",
            "What the model teaches about people in general, and so about a person who did not take "
            "part, is not prevented; nor is it the purpose of differential privacy.",
        ),
        (
            "Files of the silos",
            "Silo logs (silo-logs/) and the data itself belong to each silo. They are not released, "
            "and nothing in this report comes from them.",
        ),
    ]
    if settings.privacy.unit == "example" and settings.privacy.mode == "dp":
        items.append(
            (
                "Membership of a silo",
                "That an organisation takes part, and facts that many of its records share, are not "
                "hidden by a guarantee for single records.",
            )
        )
    return items


def _uses_of_public_text(settings: Settings) -> str:
    teacher = settings.teacher
    uses = {
        "the choice of layers": settings.layers.form == "public",
        "the first factors of LoRA": settings.adapter.init == "principal",
        "the codec's statistics": settings.codec.active
        and settings.codec.needs_prior
        and settings.codec.prior_source == "public"
        and settings.public.source != "none",
        "the training of the teacher": teacher.kind == "public",
        "the distillation from the teacher": teacher.kind != "none" and teacher.distillation > 0,
    }
    return " and ".join(use for use, asked in uses.items() if asked)


def _unit(settings: Settings) -> str:
    if settings.privacy.unit == "example":
        return (
            "One training example (one record of the data). A person with several records is "
            "protected less than one with a single record."
        )
    return "One silo: all its records together."


def _copies(settings: Settings) -> str:
    if settings.privacy.unit == "client":
        return (
            "A silo is one organisation's data. An organisation whose data are in k silos has the cost of all "
            "their events together (`fedllm account --parties A,B`)."
        )
    return (
        "A text that occurs k times is k records, and the stated epsilon is about one of them. What all k copies "
        "in one silo cost together is larger than k times that: each copy is drawn by itself, and what they "
        "contribute adds up. The numbers for 2 and 4 are in this report (copies), others by `fedllm account "
        "--copies K`. A record that several silos hold costs their events together (`--parties A,B`). How often "
        "a record occurs is private and stands in no report: each silo counts it into its own log, and `fedllm run` warns "
        "of it on the terminal."
    )


def _relation(settings: Settings) -> str:
    example = settings.privacy.unit == "example"
    what = "example" if example else "silo"
    if settings.privacy.relation == "add-or-remove-one":
        return (
            f"Two data sets are neighbours where one has one {what} more (add-or-remove-one). Nobody learns "
            "how many there are: sizes are not sent, rates and divisors are settings, counts carry noise."
        )
    if settings.privacy.relation == "replace-one":
        return (
            f"Two data sets are neighbours where the data of one {what} are replaced by other data "
            "(replace-one)."
        )
    text = (
        f"Two data sets are neighbours where one {what} of the one is empty in the other (zero-out). An empty "
        f"{what} contributes nothing to anything that is released: it is drawn like any other, and adds zero to "
        "sums and counts. "
    )
    if not example:
        return text + (
            "Which silos there are is public, so that a silo takes part is not hidden: what its data say is."
        )
    if settings.data.sizes == "public":
        return text + (
            "The number of examples is public, so that there is one more or less is not hidden: what it says "
            "is."
        )
    return (
        text + "Since sizes are private, the same epsilon holds for adding or removing one example."
    )


def _noise(settings: Settings) -> str:
    privacy = settings.privacy
    if privacy.noise_by == "sum":
        return noise_of_a_sum(settings.secure)
    if privacy.unit == "example":
        return (
            "The silo, in each local step, before anything leaves it. So the guarantee holds against "
            "the server and whoever reads the traffic; secure aggregation is not needed for it."
        )
    if privacy.noise_by == "client":
        return "The silo, before its update leaves it. The guarantee holds against the server."
    return (
        "The server, to the sum of the updates. It sees each update without noise and must be "
        "trusted; the guarantee holds against outsiders only."
    )


def _randomness(seeded: bool) -> str:
    if seeded:
        return (
            "A seed (privacy.randomness = seeded). The noise is reproducible: against whoever knows "
            "or guesses the seed there is no protection. For tests and simulations on public data."
        )
    return (
        f"The keystream of {CIPHER}, under a 256-bit key from the operating system for each use, for "
        "noise and for sampling. Against whoever cannot break this cipher it is as good as true "
        "randomness; neither keys nor noise are written anywhere."
    )


def _sizes(settings: Settings) -> str:
    if settings.data.sizes == "private":
        return (
            "A silo's number of examples is private: the sampling rate is a setting, and the number "
            "is not sent. "
        )
    if settings.client.sampling_rate is not None:
        return "A silo's number of examples is taken to be public, and stands in this report."
    return (
        "A silo's number of examples is taken to be public: the sampling rate is batch_size over "
        "this number, is sent to the server, and stands in this report. Neighbouring data sets are "
        "compared at the same rate."
    )
