"""State of a run: its settings, model, silos and extensions, and the tasks that follow from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedllm import messages as names
from fedllm.budget.round_draws import RoundDraws
from fedllm.codec.downlink import encode_params
from fedllm.settings.experiment import Settings
from fedllm.settings.io import to_json
from fedllm.training.tunable import Tunable
from privacy.randomness import generator
from server.extensions.base import Asking, RoundExtension
from server.global_model import GlobalModel
from server.replies import RunStopped
from server.robust.update_law import MadeLaw
from server.spending import SpendingView


class BudgetSpent(RunStopped):
    """The budget does not allow another round; the model so far is the result."""


class RunState:
    """The state of a run on the server, which its extensions see (:class:`server.extensions.base.ServerRun`).

    Args:
        settings: the experiment's settings.
        params: the global parameters, float32 on the CPU.
        tunable: the model that is trained.
        nodes: node id of each silo.
        draws: the silos of each round.
        run_id, run_folder, backbone: sent along with each task; the last is the digest of the frozen model's
            weights, which a silo with a copy of its own compares (empty: it does not).
        stop: set by another thread to interrupt.
        sizes: the silos' public numbers of examples, as far as they are told.
        extensions: optional parts of the run, in the order in which their hooks are called.
        emit: takes each record of the run (see :mod:`server.monitoring`).

    Attributes:
        finished_rounds, moved_rounds: rounds that are over, and rounds whose update is in ``model``;
            they differ while the silos evaluate.
        trained: whether an update of a silo is in the model: one that was accepted, and that a trusted server counted.
        model: the global parameters, and what moves with them.
        clip: clipping norm of the next round.
        asked: names of the silos that the last tasks are for.
        left: why a silo takes no part any more, by name.
        record: of the round in progress.
        save: writes a checkpoint.
        after_round: called after each finished round (checkpoints, evaluation).
    """

    def __init__(
        self,
        settings: Settings,
        params: Mapping[str, Tensor],
        *,
        tunable: Tunable,
        nodes: Mapping[str, int],
        draws: RoundDraws,
        run_id: str,
        run_folder: str,
        backbone: str = "",
        stop: threading.Event,
        sizes: Mapping[str, int | None] | None = None,
        extensions: Sequence[RoundExtension] = (),
        emit: Any = None,
    ) -> None:
        self.settings = settings
        self.tunable = tunable
        self.model = GlobalModel(settings, params)
        self.nodes = dict(nodes)
        self.draws = draws
        self.run_id = run_id
        self.run_folder = run_folder
        self.backbone = backbone
        self.stop = stop
        self.sizes = sizes or {}
        self.emit = emit or (lambda record: None)
        self.save: Callable[[], None] = lambda: None
        self.after_round: Callable[[int], None] = lambda server_round: None
        self.spending = SpendingView(settings)
        self.left: dict[str, str] = {}
        self.finished_rounds = 0
        self.moved_rounds = 0
        self.trained = False
        self.clip = settings.privacy.clip
        self.asked: list[str] = []
        self.record: dict[str, Any] = {}
        self.laws: dict[str, MadeLaw] = {}
        self._fixed: dict[str, tuple[Settings, ConfigRecord]] = {}
        self.extensions = list(extensions)
        for extension in self.extensions:
            extension.join(self)

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The global parameters that some round trains."""
        return self.tunable.part(self.model.params)[1]

    # -- the model as it travels, and as it shrinks ----------------------------------------------

    def arrays(self, params: Mapping[str, Tensor] | None = None) -> ArrayRecord:
        """Parameters (the global ones) as they travel."""
        found = self.model.params if params is None else params
        how = self.settings.codec.downlink
        if how != "none":
            rng = generator(self.settings.seed, "downlink", self.moved_rounds)
            found = encode_params(found, how, rng)
        return ArrayRecord(dict(found))

    def use_layers(self, settings: Settings, layers: Sequence[int], tunable: Tunable) -> None:
        """Continue with the layers of ``settings.adapter_layers`` alone, and cut what is kept of each coordinate.

        Args:
            settings: with the kept layers.
            layers: those of the adapter so far.
            tunable: the model with the kept layers.
        """
        kept = settings.adapter_layers
        if kept == "all":
            raise ValueError("Expected the kept layers in the settings, got all")
        self.settings, self.tunable = settings, tunable
        self.model.keep_layers(settings, layers, kept)
        for extension in self.extensions:
            extension.keep_layers(layers)

    # -- who takes part, and what they are sent --------------------------------------------------

    def staying(self, silos: Iterable[str]) -> list[str]:
        """Return those of the silos that still take part."""
        return [name for name in silos if name in self.nodes and name not in self.left]

    def require_enough(self) -> None:
        """Refuse to continue with fewer silos than ``server.min_clients``.

        Raises:
            BudgetSpent: silos have left.
            RunStopped: there never were enough.
        """
        staying = self.staying(sorted(self.nodes))
        if len(staying) < self.settings.server.min_clients:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left.items())
            kind = BudgetSpent if self.left else RunStopped
            raise kind(
                f"{len(staying)} silos can still take part, fewer than "
                f"server.min_clients={self.settings.server.min_clients}; left: {reasons}"
            )

    def tasks(
        self,
        kind: str,
        chosen: Sequence[str],
        server_round: int,
        arrays: ArrayRecord | None,
        config: ConfigRecord,
    ) -> list[Message]:
        """One message of this kind for each of the silos, with the parameters (if any) and the settings."""
        self.asked = list(chosen)
        asking = Asking(kind, server_round, arrays)
        for extension in self.extensions:
            extension.prepare_tasks(asking)
        return [self._task(asking, name, config) for name in chosen]

    def _task(self, asking: Asking, name: str, config: ConfigRecord) -> Message:
        extras = [extension.task_extras(asking, name) for extension in self.extensions]
        settings, fixed = self._fixed.get(name, (None, None))
        if fixed is None or settings is not self.settings:
            fixed = self._fixed_fields(name)
            self._fixed[name] = self.settings, fixed
        fields = ConfigRecord({**config, **fixed, names.ROUND: asking.server_round})
        content = RecordDict()
        if asking.arrays is not None:
            content[names.PARAMS] = asking.arrays
        for extra in extras:
            fields.update(extra.fields)
            content.update(extra.records)
        content[names.CONFIG] = fields
        group = str(asking.server_round)
        return Message(
            content, dst_node_id=self.nodes[name], message_type=asking.kind, group_id=group
        )

    def _fixed_fields(self, name: str) -> ConfigRecord:
        """The fields of a silo's tasks that are the same in each of them."""
        return ConfigRecord(
            {
                names.SETTINGS: to_json(self.settings.for_silo(name)),
                names.RUN_ID: self.run_id,
                names.RUN_FOLDER: self.run_folder,
                names.BACKBONE: self.backbone,
                names.PLANNED_ROUNDS: self.draws.planned(name),
            }
        )
