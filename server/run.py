"""One run on the server: find the silos, restore what was saved, train, evaluate, save, report."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.serverapp import Grid

from fedllm.budget.plan import for_silos, warnings
from fedllm.budget.round_draws import round_draws
from fedllm.budget.schedule import is_evaluation_round
from fedllm.flatness.layer_choice import settings_with_releases
from fedllm.models.backbone import Backbone
from fedllm.run import environment
from fedllm.run.checkpoints import keep, latest_checkpoint, save_checkpoint
from fedllm.run.folder import SCHEDULE, RunFolder, RunFolderError
from fedllm.run.signed_report import MOVE, require_unsigned
from fedllm.settings.experiment import Settings
from fedllm.silo.process import cores, use_threads
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from server.evaluation import ServerEvaluator, make_evaluator
from server.extensions.factory import make_extensions
from server.extracts import Extracts
from server.monitoring import Callback, Callbacks, MetricsFile, TensorBoard
from server.nodes.discovery import find_silos
from server.nodes.exchange import Stopped
from server.replies import RunStopped
from server.replies.unusable import record_unusable
from server.robust.limit_warnings import limit_warnings
from server.run_state import BudgetSpent
from server.start_check import require_finite_start
from server.strategy import RoundStrategy

FINISHED, STOPPED, INTERRUPTED, FAILED = "finished", "stopped", "interrupted", "failed"


def run_experiment(
    grid: Grid,
    run: RunFolder,
    *,
    stop: threading.Event | None = None,
    expected_nodes: int | None = None,
    expected_silos: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    evaluation_threads: int | None = None,
    extracts: Extracts | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Run (or go on with) the experiment of a run folder.

    Args:
        grid: Flower's connection to the nodes.
        run: the folder, new or with checkpoints.
        stop: set by another thread to interrupt; the state of the last finished round is kept.
        expected_nodes: number of nodes to wait for; None takes those that are there first.
        expected_silos: names of the silos of the run, one a node: they are waited for, the run fails where one
            of them does not come, and nobody else is sent a task.
        callbacks: watch the run, beside the metrics file and TensorBoard.
        evaluation_threads: CPU threads of the server's evaluations; None takes all cores (where the
            silos' processes wait meanwhile).
        extracts: of the silos' ledgers, in a deployment.
        notes: what else the run's record and its report warn of.

    Returns:
        The run's status: ``finished``, ``stopped`` (budget spent), ``interrupted`` or ``failed`` (also where it
        came to its end and no silo has trained in any round).

    Raises:
        RunFolderError: the run's settings name what this version has no longer, or its report is signed.
    """
    run.require_current()
    require_unsigned(run.path, MOVE)
    settings = run.settings()
    stop = stop or threading.Event()
    status, message, came_to_its_end = FAILED, "", False
    run_metrics = MetricsFile(run)
    watchers: list[Callback] = [run_metrics, *callbacks]
    everyone = Callbacks(watchers)
    try:
        run.write_json("environment.json", environment.describe())
        use_threads(settings.simulation.threads)
        tunable = shared_tunable(settings)
        require_finite_start(tunable, settings)
        found = find_silos(
            grid, settings, stop, expected_nodes, wanted=expected_silos, backbone=_digest(tunable)
        )
        nodes, sizes = _of_the_run(run, found.nodes), found.sizes
        absent = [f"without {sentence}" for sentence in found.problems]
        for sentence in absent:
            everyone.record({"kind": "warning", "round": 0, "message": sentence})
        settings = _checked(settings, run, tunable, nodes)
        grid = grid if extracts is None else extracts.begin(grid, nodes)
        strategy = _make_strategy(settings, run, tunable, nodes, sizes, stop, everyone)
        for extension in strategy.extensions:
            extension.before_run(grid)
        settings = strategy.settings
        first = _restore(run, strategy)
        for sentence in absent:  # again: what was recorded before a run's first round is gone now
            run_metrics.record({"kind": "warning", "round": first, "message": sentence})
        record_unusable(run_metrics.record, first, "the first question of the run", found)
        for extension in strategy.extensions:
            extension.after_restore(grid)
        if settings.output.tensorboard:
            watchers.append(TensorBoard(run.tensorboard_path, first))
            everyone.callbacks = watchers
        everyone.record(
            {
                "kind": "start",
                "round": first,
                "rounds": settings.server.rounds,
                "silos": sorted(nodes),
                "sizes": sizes,
                "targets": {name: strategy.spending.target(name) for name in sorted(nodes)},
            }
        )
        for sentence in (*notes, *warnings(settings, sizes), *limit_warnings(settings, sizes)):
            everyone.record({"kind": "warning", "round": first, "message": sentence})
        run.set_state(status="running", message="")
        evaluator = make_evaluator(settings, strategy, evaluation_threads or cores())
        if first == 0:
            evaluator.evaluate(0)  # before anything is spent: an error ends the run
        elif is_evaluation_round(settings, first):
            evaluator.catch_up(run, first)
        strategy.after_round = _after_round(run, strategy, evaluator)
        try:
            strategy.start(grid)
            status = FINISHED
        except BudgetSpent as error:
            status, message = STOPPED, str(error)
            strategy.save()
            evaluator.try_evaluate(strategy.finished_rounds)
            evaluator.report_spending(strategy.finished_rounds)
        except (Stopped, RunStopped):
            if strategy.moved_rounds == strategy.finished_rounds > 0:
                strategy.save()  # whatever server.checkpoint_every
            raise
        finally:
            if extracts is not None:
                extracts.finish(grid, strategy.spending, stop)
        came_to_its_end = True
        if not strategy.trained:
            status, message = FAILED, _why_nobody_trained(run, strategy.left)
    except Stopped:
        status, message = INTERRUPTED, "interrupted; `fedllm resume` continues it"
    except RunStopped as error:
        message = str(error)
    except SystemExit:  # Flower ends a stopped run's process this way
        status, message = INTERRUPTED, "stopped; resuming continues after the last finished round"
        raise
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        run.set_state(status=status, message=message)
        everyone.record(
            {"kind": "end", "round": run.state()["round"], "status": status, "message": message}
        )
        everyone.close()
    if run.state()["round"] > 0 or came_to_its_end:
        from fedllm.adapter.export import export_adapter
        from fedllm.report import write_report

        if status in (FINISHED, STOPPED):
            export_adapter(run, run.adapter_path)
        if status != INTERRUPTED:  # Ctrl-C should not have to wait for the accountants
            try:
                write_report(run)
            except RunFolderError as error:  # one of the run under way was signed
                logging.getLogger(__name__).warning("no report of the run's end: %s", error)
    return status


def _why_nobody_trained(run: RunFolder, left: Mapping[str, str]) -> str:
    """Return the reasons why no silo's update is in the model, a resumed run's earlier rounds included.

    Args:
        left: why a silo takes no part any more, by name.
    """
    try:
        rounds = [record for record in run.metrics() if record["kind"] == "round"]
    except OSError:
        rounds = []
    reasons = dict(left)
    for record in rounds:
        for item in (*record["failed"], *record["refused"], *record["left"]):
            reasons[item["silo"]] = item["reason"]
    said = "; ".join(f"{silo}: {reason}" for silo, reason in sorted(reasons.items()))
    return f"No silo trained in {len(rounds)} rounds: {said or 'none was drawn'}"


def _of_the_run(run: RunFolder, nodes: Mapping[str, int]) -> dict[str, int]:
    """Those of the nodes whose silos a run was begun with; all of them where it has not begun."""
    saved = run.read_json(SCHEDULE, None)
    return {name: node for name, node in nodes.items() if not saved or name in saved["silos"]}


def _checked(
    settings: Settings,
    run: RunFolder,
    tunable: Tunable,
    nodes: Mapping[str, int],
) -> Settings:
    """The settings with what depends on the silos' names and on the number of layers; see :mod:`fedllm.budget.plan` and
    :mod:`fedllm.flatness.layer_choice`.

    Raises:
        RunStopped: they do not fit these silos, or this model.
    """
    saved = run.read_json(SCHEDULE, None)
    layers = tunable.layers
    try:
        settings = settings_with_releases(settings, layers)
        return for_silos(settings, saved["silos"] if saved else sorted(nodes))
    except ValueError as error:
        raise RunStopped(str(error)) from None


def _digest(tunable: Tunable) -> str:
    """SHA-256 of the frozen model's weights; empty where it is behind an endpoint."""
    backbone = tunable.backbone
    return backbone.weights_digest if isinstance(backbone, Backbone) else ""


def _make_strategy(
    settings: Settings,
    run: RunFolder,
    tunable: Tunable,
    nodes: Mapping[str, int],
    sizes: Mapping[str, int | None],
    stop: threading.Event,
    emit: Callbacks,
) -> RoundStrategy:
    saved = run.read_json(SCHEDULE, None)
    draws = round_draws(settings, sorted(nodes), saved["rounds"] if saved else None)
    if not saved:  # without rows where each round draws its silos: no file may replay a draw
        run.write_json(SCHEDULE, {"silos": sorted(nodes), "rounds": draws.rows})
    strategy = RoundStrategy(
        settings,
        initial_params(tunable, settings),
        tunable=tunable,
        nodes=nodes,
        draws=draws,
        run_id=run.run_id,
        run_folder=str(run.path),
        backbone=_digest(tunable),
        stop=stop,
        sizes=sizes,
        extensions=make_extensions(settings, run, silos=sorted(nodes), draws=draws),
        emit=emit.record,
    )
    strategy.save = lambda: _save(run, strategy)
    return strategy


def _after_round(
    run: RunFolder, strategy: RoundStrategy, evaluator: ServerEvaluator
) -> Callable[[int], None]:
    settings = run.settings()

    def after(server_round: int) -> None:
        last = server_round == settings.server.rounds
        if last or server_round % settings.server.checkpoint_every == 0:
            strategy.save()  # before the evaluation: a paid round is never lost to it
        if is_evaluation_round(settings, server_round):
            evaluator.try_evaluate(server_round)
            evaluator.report_spending(server_round)

    return after


def _save(run: RunFolder, strategy: RoundStrategy) -> None:
    """Write a checkpoint, and what is told of the silos."""
    state = strategy.model.state()
    meta: dict[str, Any] = {
        "left": strategy.left,
        "clip": strategy.clip,
        "trained": strategy.trained,
        "spending": strategy.spending.to_plain(),
    }
    for extension in strategy.extensions:
        state |= extension.state()
        meta |= extension.meta()
    save_checkpoint(
        run.checkpoints_path, strategy.finished_rounds, strategy.model.released, state, meta
    )
    keep(run.checkpoints_path, strategy.settings.server.keep_checkpoints)
    silos = {
        name: {
            "examples": strategy.sizes.get(name),
            "sampling_rate": strategy.spending.mechanism.get(name, {}).get("sampling_rate"),
            "noise_multiplier": strategy.spending.mechanism.get(name, {}).get("noise_multiplier"),
            "participations": strategy.draws.planned(name),
            "steps_per_round": strategy.settings.client.local_steps,
            **strategy.spending.target(name),
            "left": strategy.left.get(name),
        }
        for name in sorted(strategy.nodes)
    }
    run.write_json("silos.json", silos)
    run.set_state(round=strategy.finished_rounds)


def _restore(run: RunFolder, strategy: RoundStrategy) -> int:
    """Take up the last checkpoint, where there is one; return its round."""
    checkpoint = latest_checkpoint(run.checkpoints_path)
    if checkpoint is None:
        run.truncate_metrics(-1)
        return 0
    state, meta = checkpoint.state, checkpoint.meta
    for extension in strategy.extensions:
        state = extension.fit_state(state)
    strategy.model.load_state(state)
    for extension in strategy.extensions:
        extension.load_state(state, meta)
    strategy.left |= meta["left"]
    strategy.clip = float(meta.get("clip", strategy.clip))
    strategy.spending.load_plain(meta["spending"])
    told = bool(strategy.spending.mechanism)  # all that earlier versions wrote
    strategy.trained = bool(meta.get("trained", told))
    strategy.finished_rounds = strategy.moved_rounds = checkpoint.round
    run.truncate_metrics(checkpoint.round)
    return checkpoint.round
