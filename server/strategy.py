"""The Flower Strategy: which silos train, what they are sent, and what is done with what they answer.

Guarantee: with noise by the silos, everything here is post-processing of what they released. With
noise by the server (``privacy.noise_by = "server"``), :mod:`server.extensions.central_noise` records and adds it before
the new model exists. What the replies come to is :mod:`server.round_update`, how the model moves
:mod:`server.global_model`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedllm import messages as names
from fedllm.budget.round_draws import RoundDraws
from fedllm.budget.schedule import is_evaluation_round
from fedllm.codec.downlink import decode_params, encode_params
from fedllm.settings.experiment import Settings
from fedllm.settings.io import to_json
from fedllm.training.adaptive_clip import is_adaptive, next_clip
from fedllm.training.encoding import Encoding
from fedllm.training.tunable import Tunable
from privacy.randomness import generator
from server.aggregation import tensor_bytes
from server.extensions.central_noise import TrustedNoise
from server.extensions.codec import CodecLink
from server.extensions.teacher import TeacherLink
from server.extensions.zeroth_order import DirectionsLink
from server.global_model import GlobalModel
from server.nodes.exchange import exchange
from server.replies import RunStopped, sort_replies
from server.replies.evaluation import least_count, read_evaluation
from server.replies.telling import tell_unusable
from server.round_update import RoundUpdate
from server.spending import SpendingView


class BudgetSpent(RunStopped):
    """The budget does not allow another round; the model so far is the result."""


class PrefixStrategy(Strategy):
    """Federated prefix-tuning with equal weights, a server optimiser, and tolerated failures.

    Args:
        settings: the experiment's settings.
        params: the global parameters, float32 on the CPU.
        nodes: node id of each silo.
        draws: the silos of each round.
        run_id, run_folder, backbone: sent along with each task; the last is the digest of the frozen model's
            weights, which a silo with a copy of its own compares (empty: it does not).
        stop: set by another thread to interrupt.
        trusted_noise: adds the noise where the server is trusted with it, else None.
        emit: takes each record of the run (see :mod:`server.monitoring`).
        after_round: called after each finished round (checkpoints, evaluation).
        before_round: called with the grid before each round (choice of layers).

    Attributes:
        finished_rounds, moved_rounds: rounds that are over, and rounds whose update is in ``model``;
            they differ while the silos evaluate.
        trained: whether an update of a silo is in the model: one that was accepted, and that a trusted server counted.
        model: the global parameters, and what moves with them.
        clip: clipping norm of the next round; constant unless it is adaptive.
        sizes: the silos' public numbers of examples, as far as they are told.
    """

    def __init__(
        self,
        settings: Settings,
        params: Mapping[str, Tensor],
        *,
        nodes: Mapping[str, int],
        draws: RoundDraws,
        run_id: str,
        run_folder: str,
        backbone: str = "",
        stop: threading.Event,
        trusted_noise: TrustedNoise | None = None,
        emit: Any = None,
        after_round: Any = None,
        before_round: Any = None,
    ) -> None:
        self.settings = settings
        self.model = GlobalModel(settings, params)
        self.nodes = dict(nodes)
        self.draws = draws
        self.run_id = run_id
        self.run_folder = run_folder
        self.backbone = backbone
        self.stop = stop
        self.trusted_noise = trusted_noise
        self.emit = emit or (lambda record: None)
        self.after_round = after_round or (lambda server_round: None)
        self.before_round = before_round or (lambda grid: None)
        self.spending = SpendingView(settings)
        self.left: dict[str, str] = {} if trusted_noise is None else dict(trusted_noise.left)
        self.finished_rounds = 0
        self.moved_rounds = 0
        self.trained = False
        self.codec: CodecLink | None = None
        self.teacher: TeacherLink | None = None
        black_box = settings.model.access == "black-box"
        self.directions = DirectionsLink(settings, run_id) if black_box else None
        self.clip = settings.privacy.clip
        self.sizes: Mapping[str, int | None] = {}
        self._asked: list[str] = []
        self._record: dict[str, Any] = {}

    # -- what a run has, and its model as it travels ---------------------------------------------

    def arrays(self, params: Mapping[str, Tensor] | None = None) -> ArrayRecord:
        """Parameters (the global ones) as they travel."""
        how = self.settings.codec.downlink
        rng = generator(self.settings.seed, "downlink", self.moved_rounds)
        return ArrayRecord(encode_params(self.model.params if params is None else params, how, rng))

    def use_codec(self, encoding: Encoding) -> None:
        """Let the silos encode their updates from the next round on."""
        sums_codes = self.trusted_noise is not None and encoding.in_code
        self.codec = CodecLink(encoding, self.nodes, sums_codes=sums_codes)

    def use_teacher(self, teacher: TeacherLink | None) -> None:
        """Let a teacher pull the model after each aggregation from the next round on."""
        self.teacher = teacher

    def use_layers(self, settings: Settings, layers: Sequence[int], tunable: Tunable) -> None:
        """Go on with the layers of ``settings.prefix`` alone: what is kept of each coordinate is cut.

        Args:
            settings: with the kept layers.
            layers: those that carry a prefix so far.
            tunable: the model with the kept layers.
        """
        kept = settings.prefix.layers
        if kept == "all":
            raise ValueError("Expected the kept layers in prefix.layers, got all")
        self.settings = settings
        if self.trusted_noise is not None:
            self.trusted_noise.settings = settings
        self.model.keep_layers(settings, layers, kept)
        if self.teacher is not None:
            self.teacher.keep_layers([list(layers).index(layer) for layer in kept], tunable)

    # -- Flower's interface ----------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One task for each silo of this round that is still in the run."""
        drawn = self.draws.silos(server_round, self.model.params)
        chosen = [name for name in drawn if self._in_run(name)]
        return self.tasks(MessageType.TRAIN, chosen, server_round, arrays, config)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One task for each silo, where the settings ask the silos to evaluate this round."""
        if self.settings.evaluation.clients == "off" or not is_evaluation_round(
            self.settings, server_round
        ):
            return []
        chosen = [name for name in sorted(self.nodes) if self._in_run(name)]
        return self.tasks(MessageType.EVALUATE, chosen, server_round, arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message | None]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, take the mean of the good ones, move the model.

        Raises:
            RunStopped: more replies failed than ``server.max_failures`` tolerates.
        """
        before = self.spending.copy()
        try:
            return self._aggregate(server_round, list(replies))
        except RunStopped:
            self.spending = before  # the round did not happen
            raise

    def _aggregate(
        self, server_round: int, replies: Sequence[Message | None]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        timeout = self.settings.server.timeout
        reading = RoundUpdate(
            settings=self.settings,
            run_id=self.run_id,
            server_round=server_round,
            params=self.model.params,
            clip=self.clip,
            silos=len(self.nodes),
            sizes=self.sizes,
            spending=self.spending,
            trusted_noise=self.trusted_noise,
            codec=self.codec,
            directions=self.directions,
            teacher=self.teacher,
        )
        found = sort_replies(self._asked, replies, reading.read, timeout)
        reading.judge(found)
        accepted, left = found.accepted, found.left
        if self.codec is not None:
            self.codec.forget(found.without_codec)
        record = self._record | {
            "replied": len(accepted),
            "failed": found.failed,
            "refused": found.refused,
            "left": left,
            "bytes_up": sum(c.bytes for c in accepted),
        }
        most = self.settings.server.max_failures
        asked = self.draws.share_of(len(self._asked))
        found.require(asked, most, f"round {server_round}")
        for item in left:
            self.left[item["silo"]] = item["reason"]
        mean = reading.mean(accepted, self.left)
        self.clip, told_of_clip = next_clip(self.settings, self.clip, mean.shares)
        record |= told_of_clip
        left += self._left_by_the_server()
        # A trusted server may have left silos out, and adds its noise to a sum of none as well.
        moved = mean.update is not None
        counted = [c for c in accepted if c.silo not in self.left and moved]
        self.trained = self.trained or bool(counted)
        rate = self.model.rate(server_round)
        norm = self.model.move(mean.update, mean.noise_std, server_round)
        if self.teacher is not None:
            self.teacher.move(counted, server_round)
            self.model.params, told = self.teacher.pull(self.model.params, server_round)
            record |= told
        self.model.move_average()
        self.moved_rounds = server_round
        record |= {"update_norm": norm, "learning_rate": rate}
        self._record = record
        return self.arrays(), MetricRecord({"replied": len(accepted), "update-norm": norm})

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message | None]
    ) -> MetricRecord | None:
        """Sum of the silos' (noisy) counts; None where no silo evaluated."""
        least = least_count(self.settings)
        found = sort_replies(
            self._asked,
            list(replies),
            lambda name, content: (name, read_evaluation(content, least)),
            self.settings.server.timeout,
        )
        tell_unusable(self.emit, server_round, "the evaluation by the silos", found)
        for item in found.left:
            self.left[item["silo"]] = item["reason"]
        for name, _ in found.accepted:
            self.spending.add_evaluation(name)
        correct = sum(reply.correct for _, reply in found.accepted)
        count = sum(reply.count for _, reply in found.accepted)
        answered = len(found.accepted)
        if answered == 0 or count <= 0:
            return None
        result = {"accuracy": min(1.0, max(0.0, correct / count)), "silos": float(answered)}
        self.emit({"kind": "evaluation", "round": server_round, "where": "silos", **result})
        return MetricRecord(dict(result))

    def summary(self) -> None:
        """Nothing to print: the run folder and the live view tell."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> Result:
        """Run the rounds that are left; a restored strategy goes on where it was.

        Raises:
            RunStopped: too many failures, or too few silos left.
            Stopped: ``stop`` was set; the round in progress is forgotten.
        """
        server = self.settings.server
        rounds = num_rounds or server.rounds
        wait = timeout or server.timeout
        result = Result()
        for server_round in range(self.finished_rounds + 1, rounds + 1):
            self._check_enough()
            self.before_round(grid)
            began = time.monotonic()
            arrays = self.arrays()
            tasks = list(self.configure_train(server_round, arrays, train_config or _empty(), grid))
            codec_bytes = 0
            if self.codec is not None:
                sent = self.codec.deliver(grid, self._asked, self.settings, wait, self.stop)
                codec_bytes = sent.bytes
                tell_unusable(self.emit, server_round, "the delivery of the codec", sent)
            self._record = {
                "kind": "round",
                "round": server_round,
                "bytes_down": len(tasks) * _array_bytes(tasks[:1]) + codec_bytes,
            }
            replies = exchange(
                grid, tasks, timeout=wait, stop=self.stop, on_reply=self._on_reply(server_round)
            )
            moved, metrics = self.aggregate_train(server_round, replies)
            if moved is not None:
                result.arrays = moved
            if metrics is not None:
                result.train_metrics_clientapp[server_round] = metrics
            self._record["seconds"] = time.monotonic() - began
            self.emit(self._record)
            tasks = list(
                self.configure_evaluate(
                    server_round, self.arrays(), evaluate_config or _empty(), grid
                )
            )
            if tasks:
                replies = exchange(grid, tasks, timeout=wait, stop=self.stop)
                found = self.aggregate_evaluate(server_round, replies)
                if found is not None:
                    result.evaluate_metrics_clientapp[server_round] = found
            self.finished_rounds = server_round
            if evaluate_fn is not None:
                evaluated = evaluate_fn(server_round, self.arrays())
                if evaluated is not None:
                    result.evaluate_metrics_serverapp[server_round] = evaluated
            self.after_round(server_round)
        return result

    # -- inside ----------------------------------------------------------------------------------

    def _in_run(self, name: str) -> bool:
        return name in self.nodes and name not in self.left

    def _check_enough(self) -> None:
        staying = [name for name in sorted(self.nodes) if self._in_run(name)]
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
        arrays: ArrayRecord,
        config: ConfigRecord,
    ) -> list[Message]:
        """One message of this kind for each of the silos, with the parameters and the settings."""
        self._asked = list(chosen)
        duplicate = None
        if self.teacher is not None and kind == MessageType.TRAIN:
            duplicate = self.teacher.arrays()
        directions = ""
        if self.directions is not None and kind == MessageType.TRAIN:
            sent = decode_params(arrays.to_torch_state_dict(), self.settings.codec.downlink)
            directions = self.directions.announce(self.settings, sent, server_round)
        tasks = []
        for name in chosen:
            fields = ConfigRecord(
                {
                    **config,
                    names.SETTINGS: to_json(self.settings.for_silo(name)),
                    names.RUN_ID: self.run_id,
                    names.RUN_FOLDER: self.run_folder,
                    names.BACKBONE: self.backbone,
                    names.ROUND: server_round,
                    names.PLANNED_ROUNDS: self.draws.planned(name),
                    names.CODEC_VERSION: "" if self.codec is None else self.codec.encoding.version,
                    names.DIRECTIONS: directions,
                }
            )
            if kind == MessageType.TRAIN and is_adaptive(self.settings):
                fields[names.CLIP] = self.clip
            content = RecordDict({names.PARAMS: arrays, names.CONFIG: fields})
            if duplicate is not None:
                content[names.DUPLICATE] = duplicate
            tasks.append(
                Message(
                    content,
                    dst_node_id=self.nodes[name],
                    message_type=kind,
                    group_id=str(server_round),
                )
            )
        return tasks

    def _on_reply(self, server_round: int) -> Any:
        done = 0

        def tell(reply: Message) -> None:
            nonlocal done
            done += 1
            self.emit(
                {"kind": "reply", "round": server_round, "done": done, "of": len(self._asked)}
            )

        return tell

    def _left_by_the_server(self) -> list[dict[str, str]]:
        """Silos that the server's own noise left out, since their budget allows no other round."""
        known = {} if self.trusted_noise is None else self.trusted_noise.left
        new = {name: reason for name, reason in known.items() if name not in self.left}
        self.left |= new
        return [{"silo": name, "reason": reason} for name, reason in sorted(new.items())]


def _array_bytes(tasks: Sequence[Message]) -> int:
    """Bytes of all tensors that tasks carry."""
    records = [record for task in tasks for record in task.content.array_records.values()]
    return sum(tensor_bytes(record.to_torch_state_dict()) for record in records)


def _empty() -> ConfigRecord:
    return ConfigRecord()
