"""Python that uses an exported head, for the model card."""

from __future__ import annotations

from fedllm.settings.sections import TaskSettings
from fedllm.tasks.heads.pooled import FEATURE_NORM

_NORM = f"{FEATURE_NORM:g} * torch.nn.functional.normalize"


def head_code(task: TaskSettings, file: str) -> list[str]:
    """Return Python that answers for a text with ``model``, ``tokenizer`` and the head in a file of the folder.

    It is by the task: ``answers`` are classes, lists of labels, numbers, or tags of words.
    """
    tags = task.facts.holds == "tags"
    columns = task.text
    given = '["a text"]' if len(columns) == 1 else f'["{columns[0]}"], ["{columns[1]}"]'
    if len(columns) > 2:  # see fedllm.tasks.text_columns
        given = f'["{columns[0]}"], [tokenizer.sep_token.join({list(columns[1:])!r})]'
    if tags:
        given = '" ".join(words)'
    return [
        "",
        "import torch",
        "from safetensors.torch import load_file",
        "",
        f'head = load_file("FOLDER/{file}")',
        *([f"labels = {list(task.labels or ())!r}"] if task.facts.names_labels else []),
        *(['words = ["a", "text"]'] if tags else []),
        f"batch = tokenizer({given}, padding=True, truncation=True, max_length={task.max_length}, "
        'return_tensors="pt")',
        "with torch.no_grad():",
        "    hidden = model(**batch).last_hidden_state",
        *(_of_words() if tags else _of_a_text(task)),
    ]


def _of_a_text(task: TaskSettings) -> list[str]:
    pooled = ["pooled = hidden[:, 0]"]
    if task.pooling != "cls":
        pooled = [
            'mask = batch["attention_mask"].unsqueeze(-1)',
            "pooled = (hidden * mask).sum(1) / mask.sum(1)",
        ]
    found = [*pooled, f"pooled = {_NORM}(pooled, dim=-1)"]
    outputs = '(pooled @ head["head.weight"].T + head["head.bias"])'
    if task.facts.holds == "labels":
        return [
            *found,
            f"probabilities = {outputs}.sigmoid()",
            f"answers = [[x for x, p in zip(labels, row) if p >= {task.threshold}] for row in probabilities.tolist()]",
        ]
    if task.target_range is not None:
        low, high = task.target_range
        return [
            *found,
            f"shares = {outputs}[:, 0].clamp(-1, 1)",
            f"answers = ({low!r} + (shares + 1) / 2 * {high - low!r}).tolist()",
        ]
    return [
        *found,
        f"probabilities = {outputs}.softmax(-1)",
        "answers = [labels[i] for i in probabilities.argmax(-1)]",
    ]


def _of_words() -> list[str]:
    return [
        f'scores = {_NORM}(hidden[0], dim=-1) @ head["head.weight"].T + head["head.bias"]',
        "begins = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]",
        "tokens = [batch.char_to_token(0, begin) for begin in begins]  # None: beyond max_length",
        "answers = [None if i is None else labels[scores[i].argmax()] for i in tokens]",
    ]
