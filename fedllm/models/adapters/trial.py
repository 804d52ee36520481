"""Watch a pass on public tokens: which module uses which parameter, and what comes after the last layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from fedllm.models.adapters.bitfit import is_norm
from fedllm.models.adapters.targets import layer_number, stack_of


def norms_above(model: PreTrainedModel) -> list[str]:
    """Paths of the normalisations outside of the layers that are computed after the last layer."""
    stack, count = stack_of(model)
    last, seen, above = f"{stack}.{count - 1}", [False], []
    twin = twin_of(model)

    def note(name: str, is_last: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if is_last:
                seen[0] = True
            elif seen[0]:
                above.append(name)
            else:
                before.add(name)

        return hook

    before: set[str] = set()
    for name, module in twin.named_modules():
        if name == last or (layer_number(name, stack) is None and is_norm(module)):
            module.register_forward_hook(note(name, name == last))
    run(twin)
    return sorted(set(above) - before)


def require_own_uses(
    model: PreTrainedModel, users: Mapping[str, frozenset[str]], form: str
) -> None:
    """Refuse a parameter that is used by another module's code than its own.

    Such a use would not see the change: the model that is trained would be another one than the one that is exported.

    Args:
        users: by parameter, the modules that use it.
        form: as in ``adapter.form``, for errors.

    Raises:
        ValueError: one is used elsewhere; it is named.
    """
    twin = twin_of(model)
    watched = {id(value): name for name, value in twin.named_parameters() if name in users}
    inside: list[str] = []
    for name, module in twin.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: inside.append(name))
        module.register_forward_hook(lambda *_: _pop(inside))
    with _Watch(watched, users, inside) as seen:
        run(twin)
    if seen.elsewhere:
        name, where = seen.elsewhere[0]
        raise ValueError(
            f"Expected parameters that their own modules use alone for adapter.form={form}, got {name}, which "
            f"{where or type(model).__name__} uses: use adapter.form=lora, or other adapter.layers"
        )


def _pop(stack: list[str]) -> None:
    stack.pop()


class _Watch(TorchDispatchMode):
    """Notes the parameters that reach an operation outside of their own modules; of this thread alone."""

    def __init__(
        self,
        watched: Mapping[int, str],
        users: Mapping[str, frozenset[str]],
        inside: list[str],
    ) -> None:
        super().__init__()
        self.watched, self.users, self.inside = watched, users, inside
        self.elsewhere: list[tuple[str, str]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        place = self.inside[-1] if self.inside else ""
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            name = self.watched.get(id(value)) if isinstance(value, Tensor) else None
            if name is not None and place not in self.users[name]:
                self.elsewhere.append((name, place))
        return func(*args, **(kwargs or {}))


def twin_of(model: PreTrainedModel) -> PreTrainedModel:
    """A second model object with the same tensors in memory, whose hooks are its own."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


@torch.no_grad()
def run(model: nn.Module) -> None:
    """One pass on a few public tokens."""
    size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator,union-attr]
    ids = torch.arange(10, device=next(model.parameters()).device).view(2, 5) % size
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
