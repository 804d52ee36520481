"""Chat: the assistant's turns of a conversation, written by a causal language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedllm.data.batches import Feature
from fedllm.data.record_forms import ASSISTANT, SYSTEM, USER, Message, RecordError, messages_of
from fedllm.models.backbone import Backbone
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import PUBLIC_WORD, Task, column_values
from fedllm.tasks.chat.template import ChatTemplate, TemplateFault, Turns
from fedllm.tasks.generation import Generation


class Chat(Generation):
    """Write the assistant's turns. An example is a conversation; its loss is the mean over all tokens of the assistant.

    What follows the last turn of the assistant is left out: no loss depends on it. The last answer is cut to
    ``task.max_length`` tokens, its end kept. What stands before it is cut to ``task.max_prompt`` tokens: first the oldest
    turns go, with the answers to them (messages of the system stay), then the longest text is cut.
    """

    def __init__(self, settings: TaskSettings, backbone: Backbone, prefix_length: int) -> None:
        Task.__init__(self, settings, backbone, prefix_length)
        self.template = ChatTemplate(backbone.tokenizer, settings.template, backbone.name)
        self.stops = sorted({self.template.end, backbone.tokenizer.eos_token_id} - {None})

    @property
    def longest(self) -> int:
        """Public bound on the tokens of a conversation."""
        return self.settings.prompt_length + self.settings.max_length

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        values = column_values(records, self.settings.target, "task.text")
        return [self._feature(row, value) for row, value in enumerate(values)]

    def _feature(self, row: int, value: Any) -> Feature:
        try:
            messages = messages_of(value)
            while messages and messages[-1]["role"] != ASSISTANT:
                messages.pop()
            if not messages:
                raise TemplateFault("a conversation without a turn of the assistant")
            answer = messages[-1]
            turns = self._fitted(self.template.turns([*self._cut(messages[:-1]), answer]))
        except ValueError as error:
            raise RecordError(f"column {self.settings.target!r}: {error}", row) from error
        prompt = turns.ids[: turns.last]
        meta = {"prompt": prompt, "references": [answer["content"]]}
        return Feature(input_ids=turns.ids, target_mask=turns.mask, meta=meta)

    def prompt_of(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that ask for an answer to a conversation, cut as for training.

        Raises:
            ValueError: the template does not allow the conversation.
        """
        return self.template.prompt(self._cut(messages))[-self.settings.prompt_length :]

    def public_record(self) -> dict[str, Any]:
        turns = [
            {"role": USER, "content": PUBLIC_WORD},
            {"role": ASSISTANT, "content": PUBLIC_WORD},
        ]
        return {self.settings.target: turns}

    def _fitted(self, turns: Turns) -> Turns:
        """Return the turns with the last answer, and what could not be cut before it, within the limits."""
        most, answer = self.settings.max_length, len(turns.ids) - turns.last
        skip = max(0, turns.last - self.settings.prompt_length)
        kept = [*range(skip, len(turns.ids))]
        if answer > most:
            kept = [*kept[: turns.last - skip + most - 1], len(turns.ids) - 1]
        return Turns([turns.ids[i] for i in kept], [turns.mask[i] for i in kept], turns.last - skip)

    def _cut(self, messages: Sequence[Message]) -> list[Message]:
        """Return what stands before an answer, within ``task.max_prompt`` tokens where turns and texts allow it."""
        limit, kept = self.settings.prompt_length, list(messages)
        beyond = self._beyond(kept, limit)
        while beyond > 0:
            shorter = _without_oldest(kept)
            if shorter is None:
                break
            kept = shorter
            beyond = self._beyond(kept, limit)
        for _ in range(
            8 + 2 * len(kept)
        ):  # a cut text can have more tokens than what was kept of it
            if beyond <= 0:
                break
            lengths = [len(self._content_tokens(message)) for message in kept]
            place = max(range(len(kept)), key=lengths.__getitem__, default=0)
            if not kept or lengths[place] <= 1:
                break
            ids = self._content_tokens(kept[place])[: max(1, lengths[place] - beyond)]
            text = str(self.backbone.tokenizer.decode(ids, skip_special_tokens=True))
            if text == kept[place]["content"]:
                break
            kept[place] = kept[place] | {"content": text}
            beyond = self._beyond(kept, limit)
        return kept

    def _beyond(self, messages: Sequence[Message], limit: int) -> int:
        return len(self.template.prompt(messages)) - limit

    def _content_tokens(self, message: Message) -> list[int]:
        tokenizer = self.backbone.tokenizer
        return list(tokenizer(message["content"], add_special_tokens=False)["input_ids"])


def _without_oldest(messages: Sequence[Message]) -> list[Message] | None:
    """Return the conversation without its oldest question and all that follows it before the next one; None for the
    last question."""
    asked = [place for place, message in enumerate(messages) if message["role"] == USER]
    if len(asked) < 2:
        return None
    head = [m for m in messages[: asked[1]] if m["role"] == SYSTEM]
    return [*head, *messages[asked[1] :]]
