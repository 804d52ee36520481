"""Names of the records and fields that server and clients exchange. Nothing but names and defaults.

Only trainable tensors travel (safetensors-like arrays), with plain numbers and texts beside them.
"""

from __future__ import annotations

PARAMS = "params"
"""Arrays: the global parameters (downlink)."""
DUPLICATE = "duplicate"
"""Arrays: the non-private teacher's parameters with a task (downlink), a silo's raw update of it with a
reply (uplink); ``teacher.kind = "nonprivate"`` alone."""
UPDATE = "update"
"""Arrays: a silo's update (uplink)."""
CODEC = "codec"
"""Arrays: a codec's tensors (downlink, once)."""
STATISTICS = "statistics"
"""Arrays: a silo's released statistics (uplink, before training)."""
SCORES = "scores"
"""Arrays: a silo's released scores of the layers (uplink, once or once a step of the search)."""
CONFIG = "config"
"""Texts and numbers with a task: the fields below."""
INFO = "info"
"""Texts with a reply: silo, status, reason."""
METRICS = "metrics"
"""Numbers with a reply."""

SETTINGS = "settings"
RUN_ID = "run-id"
"""With a task, and with a reply that has an update: the run that it is of."""
RUN_FOLDER = "run-folder"
ROUND = "round"
"""With a task, and with a reply that has an update: the round that it is of."""
PLANNED_ROUNDS = "planned-rounds"
CLIP = "clip"
"""Adaptive clipping: the clipping norm of the round, with a task."""
BACKBONE = "backbone"
"""SHA-256 of the frozen model's weights at the server, which are not sent."""
CODEC_VERSION = "codec-version"
"""SHA-256 of the codec: with a task the one to encode by, with a reply the one encoded by."""
CODEC_META = "codec-meta"
"""JSON: what of a codec is not a tensor."""

DIRECTIONS = "directions"
"""Public seed of the round's random directions (``model.access = "black-box"``); empty for none."""

WITHOUT = {CODEC_VERSION: "", DIRECTIONS: ""}
"""Fields of a task where no codec and no directions are used."""

CANDIDATES = "candidates"
"""Numbers of the layers to score."""

LEDGER = "ledger"
"""Texts: with a reply a signed extract of the silo's ledger and its signed head; with a task the last of these heads."""
EXTRACT = "extract"
EXTRACT_SIGNATURE = "extract-signature"
HEAD = "head"
HEAD_SIGNATURE = "head-signature"
DELTA = "delta"
"""Delta that the run's report states, for which the extract is made."""

ASK_EXTRACT = "query.extract"
ASK_STATISTICS = "query.statistics"
ASK_SCORES = "query.scores"
SEND_CODEC = "query.codec"

SILO = "silo"
STATUS = "status"
REASON = "reason"

OK = "ok"
LEFT = "left"
"""The silo leaves the run: its budget does not allow another step."""
FAILED = "failed"
NEEDS_CODEC = "needs-codec"
"""The silo does not have the codec that the task names."""
IDLE = "idle"
"""A node for which the data has no silo."""

NOISE_STD = "noise-std."
"""Prefix of the metric that tells the noise's standard deviation in one tensor of the update."""
EXAMPLES = "examples"
SAMPLING_RATE = "sampling-rate"
NOISE_MULTIPLIER = "noise-multiplier"
STEPS = "steps"
BELOW = "below-clip"
"""Adaptive clipping: noisy share of norms at most the clipping norm (noise by the server: the silo's bit)."""
CORRECT = "correct"
COUNT = "count"
