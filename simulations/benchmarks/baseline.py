"""The baseline: what an engineer puts together from Flower's examples, PEFT and Opacus.

Each choice follows the projects' own material:

* One call per client and round loads tokenizer and model again and wraps it with PEFT, as Flower's
  ``quickstart-huggingface`` and ``flowertune-llm`` examples do in their client functions.
* ``PrefixTuningConfig`` without projection: one key and value per layer and virtual token. For an
  encoder PEFT also trains the classification layer.
* ``PrivacyEngine.make_private`` with its defaults: Poisson sampling, flat clipping, hooks; the model
  in training mode, as Opacus demands (``opacus`` example of Flower, text-classifier tutorial of
  Opacus).
* Padding to ``max_length`` (tutorial of Opacus; it takes 128 tokens, here the 64 that our side
  takes), or to the longest example of the batch (``quickstart-huggingface``).

In the baseline's favour, beyond the examples: logits are computed at the last position alone
(``logits_to_keep=1``), dropout is 0, only the adapter's tensors are read out, and the examples of a
client are already in memory.

With padding to the batch's longest example on the left, PEFT counts positions from the padding, so
an example's gradient depends on its batch mates, and per-example clipping no longer bounds its
influence: fast, and without the guarantee that Opacus reports. Padding to ``max_length`` has no such
flaw. Both are measured.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedllm.data.batches import Feature
from fedllm.models.adapters.targets import layer_number, stack_of
from fedllm.models.embedded import quiet_loading
from fedllm.settings.adapter import AdapterSettings
from fedllm.training.tunable import Tunable
from simulations.benchmarks.support.timing import timed
from simulations.benchmarks.support.workload import LABEL_WORDS, LABELS, PROMPT

Padding = Literal["max_length", "longest"]
Encoded = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Choice:
    """Parameters that both sides share.

    Attributes:
        adapter: its form, and rank and alpha of LoRA.
        targets: paths of the maps that LoRA changes.
        layers: numbers of the layers that the adapter changes.
    """

    folder: str
    kind: str
    prefix_length: int
    max_length: int
    batch_size: int
    local_steps: int
    clip: float
    noise_multiplier: float
    learning_rate: float
    dtype: torch.dtype
    device: torch.device
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClientRound:
    """Seconds of the parts of one client's round, the examples seen, the adapter's tensors."""

    load: float
    tokenise: float
    train: float
    examples: int
    tokens: int
    adapter: dict[str, Tensor]


def missing() -> str | None:
    """Return the package that is missing for this baseline, or None."""
    absent = [name for name in ("peft", "opacus") if find_spec(name) is None]
    return ", ".join(absent) or None


def load_tokenizer(choice: Choice) -> Any:
    """Return the model's tokenizer; decoders pad on the left, with some existing token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(choice.folder)
    tokenizer.padding_side = "left" if choice.kind == "decoder" else "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(choice: Choice) -> nn.Module:
    """Return the model with PEFT's adapter, in training mode without dropout.

    Forms that PEFT does not have (``bitfit``, ``last-layers``, ``full``) are the plain model with the same parameters
    unfrozen, less those that Opacus has no rule for: position embeddings, a decoder's tied vocabulary.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    decoder = choice.kind == "decoder"
    with quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("transformers").setLevel(logging.ERROR)  # "newly initialised" is meant
        if decoder:
            model = AutoModelForCausalLM.from_pretrained(choice.folder, dtype=choice.dtype)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(
                choice.folder, dtype=choice.dtype, num_labels=len(LABELS)
            )
        adapted = _adapted(choice, model).to(choice.device)
    for module in adapted.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return adapted.train()


def _adapted(choice: Choice, model: Any) -> nn.Module:
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    form, task = choice.adapter.form, "CAUSAL_LM" if choice.kind == "decoder" else "SEQ_CLS"
    config: Any = None
    if form == "prefix":
        config = PrefixTuningConfig(task_type=task, num_virtual_tokens=choice.prefix_length)
    elif choice.adapter.low_rank:
        config = LoraConfig(
            task_type=task,
            r=choice.adapter.rank,
            lora_alpha=int(choice.adapter.alpha),
            target_modules=list(choice.targets),
        )
    if config is not None:
        adapted: nn.Module = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if form in ("ffa-lora", "fedsvd") and ".lora_A." in name:
                parameter.requires_grad_(False)
        return adapted
    stack, _ = stack_of(model)
    for name, parameter in model.named_parameters():
        layer = layer_number(name, stack)
        trained = _is_trained(form, name, layer, choice.layers)
        # Opacus has no gradients by example where one row of ids stands for all examples.
        parameter.requires_grad_(trained and "position_embeddings" not in name)
    if choice.kind == "decoder":
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
    plain: nn.Module = model
    return plain


def _is_trained(form: str, name: str, layer: int | None, layers: Sequence[int]) -> bool:
    """Whether a parameter of the plain model is trained; the head always is."""
    if name.startswith("classifier.") or form == "full":
        return True
    norm_or_bias = name.endswith(".bias") or "norm" in name.lower()
    return layer in layers and (form == "last-layers" or (form == "bitfit" and norm_or_bias))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that PEFT left unfrozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def mean_loss(
    model: nn.Module, ids: Tensor, mask: Tensor, targets: Tensor, words: Tensor | None
) -> Tensor:
    """Return the mean cross-entropy over label words (decoder) or over the classification layer's outputs."""
    if words is None:
        logits = model(input_ids=ids, attention_mask=mask).logits
    else:
        out = model(input_ids=ids, attention_mask=mask, logits_to_keep=1)
        logits = out.logits[:, -1, words]
    return cross_entropy(logits.float(), targets)


def word_ids(choice: Choice, tokenizer: Any) -> Tensor | None:
    """Return the first tokens of the label words, for decoders."""
    if choice.kind != "decoder":
        return None
    first = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in LABEL_WORDS]
    return torch.tensor(first, device=choice.device)


def encode(
    choice: Choice, tokenizer: Any, records: Sequence[Mapping[str, str]], padding: Padding
) -> list[Encoded]:
    """Return one (ids, mask, class) per example, already padded to ``max_length``."""
    decoder = choice.kind == "decoder"
    texts = [PROMPT.format(text=r["text"]) if decoder else r["text"] for r in records]
    classes = [LABELS.index(r["label"]) for r in records]
    whole = padding == "max_length"
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=choice.max_length,
        padding="max_length" if whole else False,
    )
    rows = zip(encoded["input_ids"], encoded["attention_mask"], classes, strict=True)
    return [(torch.tensor(i), torch.tensor(m), torch.tensor(c)) for i, m, c in rows]


def pad_to_longest(tokenizer: Any, examples: Sequence[Encoded]) -> Encoded:
    """Collate unpadded examples (as ``DataCollatorWithPadding`` does)."""
    unpadded = {
        "input_ids": [ids for ids, _, _ in examples],
        "attention_mask": [mask for _, mask, _ in examples],
    }
    padded = tokenizer.pad(unpadded, padding=True, return_tensors="pt")
    classes = torch.stack([target for _, _, target in examples])
    return padded["input_ids"], padded["attention_mask"], classes


def peft_step(
    choice: Choice,
    model: nn.Module,
    words: Tensor | None,
    tunable: Tunable,
    features: list[Feature],
    max_tokens: int,
) -> Callable[[], None]:
    """Return one non-private step of PEFT's prefix on the same micro-batches."""
    optimizer = torch.optim.SGD(trainable(model), lr=choice.learning_rate)

    def step() -> None:
        optimizer.zero_grad()
        for group in tunable.task.batches(features, max_tokens):
            batch = tunable.task.collate([features[i] for i in group])
            assert batch.targets is not None
            loss = mean_loss(model, batch.input_ids, batch.attention_mask, batch.targets, words)
            torch.autograd.backward(loss * (len(group) / choice.batch_size))
        optimizer.step()

    return step


def opacus_step(
    choice: Choice,
    model: nn.Module,
    words: Tensor | None,
    tunable: Tunable,
    features: list[Feature],
    max_tokens: int,
) -> Callable[[], None]:
    """Return one private step by Opacus on the same micro-batches (as its BatchMemoryManager does)."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped = GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(trainable(wrapped), lr=choice.learning_rate),
        noise_multiplier=choice.noise_multiplier,
        max_grad_norm=choice.clip,
        expected_batch_size=choice.batch_size,
    )

    def step() -> None:
        groups = tunable.task.batches(features, max_tokens)
        for number, group in enumerate(groups, start=1):
            batch = tunable.task.collate([features[i] for i in group])
            assert batch.targets is not None
            optimizer.signal_skip_step(do_skip=number < len(groups))
            loss = mean_loss(wrapped, batch.input_ids, batch.attention_mask, batch.targets, words)
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    return step


def train_client(
    choice: Choice,
    records: Sequence[Mapping[str, str]],
    padding: Padding,
    adapter: Mapping[str, Tensor] | None = None,
) -> ClientRound:
    """Run one client's round, from loading the model to the adapter's tensors.

    Args:
        records: the client's examples, ``{"text", "label"}``.
        adapter: the global adapter, or None in the first round.
    """
    device = choice.device
    load = timed(lambda: (load_tokenizer(choice), load_model(choice)), device)
    tokenizer, model = load.result
    tokenise = timed(partial(encode, choice, tokenizer, records, padding), device)
    train = timed(
        partial(_train, choice, tokenizer, model, tokenise.result, padding, adapter), device
    )
    seen, tokens, state = train.result
    return ClientRound(load.wall, tokenise.wall, train.wall, seen, tokens, state)


def _train(
    choice: Choice,
    tokenizer: Any,
    model: nn.Module,
    examples: list[Encoded],
    padding: Padding,
    adapter: Mapping[str, Tensor] | None,
) -> tuple[int, int, dict[str, Tensor]]:
    from opacus import PrivacyEngine
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from torch.utils.data import DataLoader

    logging.getLogger("opacus").setLevel(logging.ERROR)
    if adapter is not None:
        set_peft_model_state_dict(model, dict(adapter))
    words = word_ids(choice, tokenizer)
    optimizer = torch.optim.SGD(trainable(model), lr=choice.learning_rate)
    collate = partial(pad_to_longest, tokenizer) if padding == "longest" else None
    seen, tokens = 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader: Any = DataLoader(
            examples,  # type: ignore[arg-type]
            batch_size=choice.batch_size,
            collate_fn=collate,
        )
        private, optimizer, loader = PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=choice.noise_multiplier,
            max_grad_norm=choice.clip,
        )
        steps = 0
        while steps < choice.local_steps:
            for batch in loader:
                ids, mask, targets = (part.to(choice.device) for part in batch)
                torch.autograd.backward(mean_loss(private, ids, mask, targets, words))
                optimizer.step()
                optimizer.zero_grad()
                seen, tokens, steps = seen + len(targets), tokens + ids.numel(), steps + 1
                if steps == choice.local_steps:
                    break
    state = get_peft_model_state_dict(model)
    return seen, tokens, {name: value.detach().cpu() for name, value in state.items()}
