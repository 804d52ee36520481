"""Predict with a trained model from a run folder or an exported adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedllm.adapter.peft import NATIVE_CONFIG, AdapterError, load_adapter
from fedllm.adapter.released import released_params
from fedllm.data.batches import Feature
from fedllm.data.record_forms import ASSISTANT, USER, Message, messages_of, words_of
from fedllm.models.backbone import Backbone
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.settings.experiment import Settings
from fedllm.settings.io import SettingsError, parse_recorded
from fedllm.tasks.base import Task, expand_params
from fedllm.tasks.chat.task import Chat
from fedllm.tasks.generation import Generation
from fedllm.training.tunable import Tunable, make_tunable


class PredictError(ValueError):
    """There is no model to use, or an input does not have the columns that the task reads."""


class Predictor:
    """A backbone with trained parameters, ready for texts.

    Args:
        source: a run folder (its last checkpoint is used), or a folder that
            :func:`fedllm.adapter.export.export_adapter` wrote.
        backbone: the base model where it is in memory already; loaded by its name otherwise.
        device: where to load the base model; by default as the settings say.

    Attributes:
        settings: of model, prefix and task.
        round: rounds of training behind the parameters.

    Raises:
        PredictError: no model in ``source``, or its parameters do not fit the base model.
        RunFolderError, CheckpointError, AdapterError: a file is damaged.
    """

    def __init__(
        self,
        source: RunFolder | str | Path,
        *,
        backbone: Backbone | None = None,
        device: str | None = None,
    ) -> None:
        self.settings, params, self.round, self._max_tokens = _load(source)
        if device is not None:
            model = self.settings.model.model_copy(update={"device": device})
            self.settings = self.settings.model_copy(update={"model": model})
        self.tunable: Tunable = make_tunable(self.settings, backbone)
        _check_fit(self.tunable, params, source)
        where = self.tunable.backbone.device
        self.params = {name: value.to(where) for name, value in params.items()}

    def predict(
        self, texts: Sequence[str | Mapping[str, Any]], *, max_new_tokens: int | None = None
    ) -> list[Any]:
        """Answers, one for each input, in order.

        Args:
            texts: texts, or mappings with the columns of ``task.text`` (needed where the task reads
                several columns). For chat a text is a question; a mapping holds a conversation, whose answers behind the
                last question are left out.
            max_new_tokens: generation and chat only: tokens written at most, by default
                ``evaluation.max_new_tokens``.

        Returns:
            For classification ``{"label": str, "probabilities": {label: float}}``; for multilabel ``{"labels":
            [str], "probabilities": {label: float}}``; for regression a number; for tokens ``{"words": [str], "tags":
            [str | None]}``; for generation and chat the text that the model writes (greedy).

        Raises:
            PredictError: an input lacks a column, or holds something else than the task reads.
        """
        task = self.tunable.task
        limit = max_new_tokens or self.settings.evaluation.max_new_tokens
        try:
            if isinstance(task, Chat):
                prompts = [task.prompt_of(self._conversation(text)) for text in texts]
                return list(self.tunable.write(self.params, prompts, limit))
            features = task.features([self._record(text) for text in texts])
        except PredictError:
            raise
        except ValueError as error:
            raise PredictError(str(error)) from error
        if isinstance(task, Generation):
            prompts = [feature.meta["prompt"] for feature in features]
            return list(self.tunable.write(self.params, prompts, limit))
        return self._answered(task, features)

    def _conversation(self, text: str | Mapping[str, Any]) -> list[Message]:
        """Return the messages to answer: up to the last that is not the assistant's."""
        column = self.settings.task.target
        if isinstance(text, str):
            return [{"role": USER, "content": text}]
        if column not in text:
            raise PredictError(f"Expected the column {column!r}, got {sorted(map(str, text))}")
        messages = messages_of(text[column])
        while messages and messages[-1]["role"] == ASSISTANT:
            messages.pop()
        if not messages:
            raise PredictError("Expected a conversation with a message to answer, got none")
        return messages

    def _record(self, text: str | Mapping[str, Any]) -> dict[str, Any]:
        task = self.settings.task
        # A target is read with every record; this one influences nothing that is returned.
        target = self.tunable.task.public_record()[task.target]
        if isinstance(text, str):
            if len(task.text) != 1:
                raise PredictError(
                    f"Expected mappings with the columns {', '.join(task.text)}, got a text alone"
                )
            text = {task.text[0]: text}
        missing = [column for column in task.text if column not in text]
        if missing:
            raise PredictError(f"Expected the column {missing[0]!r}, got {sorted(map(str, text))}")
        if task.facts.holds == "tags":
            target *= len(words_of(text[task.text[0]]))
        return {**{column: text[column] for column in task.text}, task.target: target}

    @torch.no_grad()
    def _answered(self, task: Task, features: Sequence[Feature]) -> list[Any]:
        found: list[Any] = [None for _ in features]
        for group in task.batches(features, self._max_tokens):
            chosen = [features[i] for i in group]
            batch = task.collate(chosen)
            rows = expand_params(self.params, len(batch.input_ids))
            with self.tunable.adapted(expand_params(self.params, 1)):
                try:
                    answers = task.answers(rows, batch, chosen)
                except TypeError as error:
                    raise PredictError(str(error)) from error
            for index, answer in zip(group, list(answers), strict=True):
                found[index] = answer
        return found


def _load(source: RunFolder | str | Path) -> tuple[Settings, dict[str, Tensor], int, int]:
    if not isinstance(source, RunFolder):
        folder = Path(source).expanduser()
        if (folder / NATIVE_CONFIG).is_file():
            return _load_adapter(folder)
        try:
            source = RunFolder.open(folder)
        except RunFolderError as error:
            raise PredictError(
                f"Expected a run folder, or an exported adapter with {NATIVE_CONFIG}: {error}"
            ) from None
    checkpoint = latest_checkpoint(source.checkpoints_path)
    if checkpoint is None:
        raise PredictError(
            f"Expected a checkpoint in the run {source.path}, found none that is whole"
        )
    params = {name: value.float() for name, value in released_params(checkpoint).items()}
    settings = source.settings_of(params)
    return settings, params, checkpoint.round, settings.client.max_tokens


def _load_adapter(folder: Path) -> tuple[Settings, dict[str, Tensor], int, int]:
    params, meta = load_adapter(folder)
    try:
        settings = parse_recorded(meta["settings"], source=str(folder / NATIVE_CONFIG))
        return settings, params, int(meta["round"]), int(meta["max_tokens"])
    except (KeyError, TypeError, ValueError, SettingsError) as error:
        raise AdapterError(
            f"Expected the metadata of an exported model in {folder / NATIVE_CONFIG}: {error!r}"
        ) from None


def _check_fit(tunable: Tunable, params: Mapping[str, Tensor], source: object) -> None:
    wanted = {name: tuple(value.shape) for name, value in tunable.task.initial_params().items()}
    wanted |= tunable.adapter.shapes()
    got = {name: tuple(value.shape) for name, value in params.items()}
    if got != wanted:
        raise PredictError(
            f"Expected parameters of the shapes {wanted} for model.name="
            f"{tunable.backbone.name!r}, got {got} from {source}"
        )
