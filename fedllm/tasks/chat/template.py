"""A tokenizer's chat template: conversations as tokens, and which of them the assistant wrote.

Templates are Jinja, which transformers renders in its sandbox, and are no code of a model. What a template gives must
be a function of the conversation alone: the date that templates ask for is a fixed one, and one that draws at random
is refused.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fedllm.data.record_forms import ASSISTANT, Message

DATE = {
    "%Y": "2025",
    "%y": "25",
    "%m": "01",
    "%d": "01",
    "%B": "January",
    "%b": "Jan",
    "%A": "Wednesday",
    "%a": "Wed",
}
"""The day that a template is told (1 January 2025), by the formats that templates use."""
_NOW = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f".replace('{key}', '{value}')" for key, value in DATE.items())
    + " }}{%- endmacro %}\n"
)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_RANDOM = re.compile(r"\|\s*random\b|\blipsum\b")
_TRACKED = threading.Lock()
"""transformers marks the assistant's text in the compiled template, which all threads share."""


class TemplateFault(ValueError):
    """A template does not allow a conversation, or what it gives cannot be divided into turns."""


@dataclass(frozen=True)
class Turns:
    """A conversation that ends with a turn of the assistant.

    Attributes:
        ids: its tokens.
        mask: 1 at each token that the assistant wrote, the end of its turn among them; as long as ``ids``.
        last: where the last turn of the assistant begins.
    """

    ids: list[int]
    mask: list[int]
    last: int


class ChatTemplate:
    """A template with its tokenizer.

    Args:
        tokenizer: the model's.
        template: Jinja text; None: the tokenizer's own.
        model: the model's name, for messages.

    Raises:
        ValueError: there is no template, it is no Jinja, draws at random, or does not take one question and answer.

    Attributes:
        end: the token that ends a turn of the assistant.
    """

    def __init__(self, tokenizer: Any, template: str | None, model: str) -> None:
        self.tokenizer = tokenizer
        self.text = template if template is not None else _own(tokenizer, model)
        drawn = _RANDOM.search(self.text)
        if drawn is not None:
            raise ValueError(
                f"Expected a chat template that gives the same tokens each time (task.template), got one with {drawn[0]!r}"
            )
        self.marks = _GENERATION.search(self.text) is not None
        if "strftime_now" in self.text:
            self.text = _NOW + self.text
        eos = tokenizer.eos_token_id
        self.end: int | None = None if eos is None else int(eos)
        self._special = set(tokenizer.all_special_ids)
        self._special |= {
            token for token, added in tokenizer.added_tokens_decoder.items() if added.special
        }
        if tokenizer.unk_token_id not in (eos, tokenizer.bos_token_id):
            self._special.discard(tokenizer.unk_token_id)  # part of a text
        probe = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "a"}]
        try:
            turns = self.turns(probe)
        except TemplateFault as error:
            raise ValueError(
                f"Expected a chat template (task.template) that takes a question and an answer, got for "
                f"model.name={model!r}: {error}"
            ) from None
        if turns.ids[-1] in self._special:
            self.end = turns.ids[-1]
        if self.end is None:
            raise ValueError(
                "Expected a token that ends the assistant's turn, of the template (task.template) or the tokenizer's "
                f"eos_token, got none for model.name={model!r}"
            )

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, and of the beginning of an answer to it.

        Raises:
            TemplateFault: the template does not allow it.
        """
        return self._tokens(self._rendered(messages, prompt=True))

    def turns(self, messages: Sequence[Message]) -> Turns:
        """Return the tokens of a conversation that ends with a turn of the assistant, and which of them it wrote.

        Templates with ``{% generation %}`` say so themselves. For others an answer is what is added to the
        conversation before it, which the template ends with the beginning of an answer. What follows the token
        that ends a turn does not count.

        Raises:
            TemplateFault: the template does not allow it, or writes earlier turns anew behind later ones.
        """
        ids, spans = self._marked(messages) if self.marks else self._divided(messages)
        mask = [0] * len(ids)
        for start, stop in spans:
            mask[start:stop] = [1] * (stop - start)
        if not spans:
            raise TemplateFault("the template marks no token of the assistant")
        start, stop = spans[-1]
        ids, mask = ids[:stop], mask[:stop]
        if ids[-1] not in self._special and self.end is not None:
            ids, mask = [*ids, self.end], [*mask, 1]
        return Turns(ids, mask, start)

    def _divided(self, messages: Sequence[Message]) -> tuple[list[int], list[tuple[int, int]]]:
        """Return tokens and the spans of answers, by what each turn adds to the text."""
        cuts = []
        for place, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                cuts.append((place, self._rendered(messages[:place], prompt=True)))
                cuts.append((place, self._rendered(messages[: place + 1], prompt=False)))
        ids: list[int] = []
        ends, before = [], ""
        for place, text in cuts:
            if not text.startswith(before):
                raise TemplateFault(
                    f"the template writes what stands before message {place} in another way once it is there, so that "
                    "the assistant's tokens cannot be told apart; a template (task.template) with {% generation %} marks "
                    "them"
                )
            whole = self._tokens(text)
            # Where the tokenizer joins what the model is given with what it answers, they are kept apart, as in use.
            ids = whole if whole[: len(ids)] == ids else ids + self._tokens(text[len(before) :])
            ends.append(len(ids))
            before = text
        pairs = list(pairwise(ends))[::2]
        return ids, [(start, self._end_of_turn(ids, start, stop)) for start, stop in pairs]

    def _marked(self, messages: Sequence[Message]) -> tuple[list[int], list[tuple[int, int]]]:
        """Return tokens and the spans of answers, as the template marks them."""
        with _TRACKED:
            found = self._apply(messages, tokenize=True, return_assistant_tokens_mask=True)
        mask = [*found["assistant_masks"], 0]
        spans, start = [], None
        for place, counts in enumerate(mask):
            if counts and start is None:
                start = place
            elif not counts and start is not None:
                spans.append((start, place))
                start = None
        return list(found["input_ids"]), spans

    def _end_of_turn(self, ids: Sequence[int], start: int, stop: int) -> int:
        """Return where an answer ends: behind its last special token, if only blanks follow."""
        for place in range(stop - 1, start - 1, -1):
            if ids[place] in self._special:
                rest = str(self.tokenizer.decode(ids[place + 1 : stop]))
                return stop if rest.strip() else place + 1
        return stop

    def _rendered(self, messages: Sequence[Message], *, prompt: bool) -> str:
        return str(self._apply(messages, tokenize=False, add_generation_prompt=prompt))

    def _apply(self, messages: Sequence[Message], **options: Any) -> Any:
        if not messages:
            raise TemplateFault("the assistant's turn is the first: nothing asks for it")
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], chat_template=self.text, **options
            )
        except (
            Exception
        ) as error:  # Jinja's own kinds, and whatever an expression in a template raises
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise TemplateFault(f"the template raises {type(error).__name__}: {reason}") from error

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _own(tokenizer: Any, model: str) -> str:
    """Return a tokenizer's chat template.

    Raises:
        ValueError: it has none, or several of which none is the default.
    """
    try:
        return str(tokenizer.get_chat_template(None))
    except ValueError as error:
        raise ValueError(
            f"Expected task.template for task.kind=chat with model.name={model!r}, whose tokenizer has no chat template to "
            f"use, got none ({str(error).splitlines()[0][:200]})"
        ) from None
