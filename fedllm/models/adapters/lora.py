"""LoRA and its forms for noise: ``y = W x + s B A x`` with s = alpha / rank.

With one copy of A (r, in) and B (out, r) an example both products are batched over the examples, so one ordinary
backward pass gives each example's own gradient, without hooks on gradients, for every architecture made of linear maps.

Forms (``adapter.form``); all start with orthonormal rows of A, and B = 0:

* ``lora`` (Hu et al. 2021, arXiv 2106.09685): A and B are trained. The product of two noisy factors has a term of
  noise times noise, and the mean over silos of A and of B is not the mean of B A.
* ``ffa-lora`` (Sun et al. 2024, arXiv 2403.12313): A stays. The change is linear in B: means over silos are exact, and
  half of the coordinates carry noise.
* ``rolora`` (Chen et al. 2024, arXiv 2409.02346): B is trained in odd rounds, A in even ones.
* ``fedsvd`` (Lee et al. 2025, arXiv 2505.12805): B is trained; after each round the server writes B A anew by its
  singular value decomposition (:func:`refactored`), which is post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.models.adapters.base import Adapter, check_kept
from fedllm.models.adapters.slot import by_example, changed, shared_or_own
from fedllm.models.adapters.tape import Kind, Tape
from fedllm.models.adapters.targets import Target

LoraForm = Literal["lora", "ffa-lora", "rolora", "fedsvd"]
FORMS: tuple[LoraForm, ...] = ("lora", "ffa-lora", "rolora", "fedsvd")
A, B = "A", "B"


@dataclass(frozen=True)
class LowRank:
    """The change s B A x of one linear map.

    Attributes:
        a: (B, r, in), or (r, in) where all examples share it.
        b: (B, out, r), or (out, r).
        scale: s.
        batch: rows and padded tokens; None where both are shared.
        name: of the module, for errors.
        tensors: names of A and B.
        tape: records the factors of their gradients; None: the tensors are differentiated.
    """

    a: Tensor
    b: Tensor
    scale: float
    batch: tuple[int, int] | None
    name: str
    tensors: tuple[str, str] = (A, B)
    tape: Tape | None = None

    def __call__(self, module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        """Return output + s B A given, computed in float32."""
        x = given.to(output.device, self.a.dtype)  # a model may lie on several devices
        if self.batch is not None:
            x = by_example(x, self.batch, self.name)
        inner = self._watched(0, x, _product(x, self.a.to(x.device)))
        change = self._watched(1, inner, _product(inner, self.b.to(x.device)))
        return output + (change * self.scale).to(output.dtype).view(output.shape)

    def _watched(self, place: int, given: Tensor, output: Tensor) -> Tensor:
        tape, tensor = self.tape, self.tensors[place]
        if tape is None or tensor not in tape.names:
            return output
        return tape.watch(tensor, Kind.LINEAR, given, output, self.name)


def _product(x: Tensor, factor: Tensor) -> Tensor:
    """x (..., in) times the factor (out, in) that all examples share, or x (B, N, in) times each one's (B, out, in).

    Which of the two it is does not depend on the number of examples: the kernels round differently.
    """
    if factor.dim() == 2:
        return nn.functional.linear(x, factor)
    return torch.bmm(x, factor.transpose(1, 2))


@dataclass(frozen=True, eq=False)
class LoraAdapter(Adapter):
    """LoRA on chosen linear maps of a model.

    Attributes:
        model: the frozen model.
        targets: the maps.
        rank, alpha: r, and the numerator of s.
        lora_form: which factors are trained.
    """

    model: PreTrainedModel
    targets: tuple[Target, ...]
    rank: int
    alpha: float
    lora_form: LoraForm = "lora"

    form: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        for target in self.targets:
            if self.rank > min(target.inputs, target.outputs):
                raise ValueError(
                    f"Expected adapter.rank <= {min(target.inputs, target.outputs)} (the smaller side of "
                    f"{target.module}), got adapter.rank={self.rank}"
                )
        layers = {t.layer for t in self.targets if t.layer is not None}
        object.__setattr__(self, "layers", tuple(sorted(layers)))

    @property
    def scale(self) -> float:
        """s = alpha / rank."""
        return self.alpha / self.rank

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for target in self.targets:
            found[factor_name(target, A)] = (self.rank, target.inputs)
            found[factor_name(target, B)] = (target.outputs, self.rank)
        return found

    def fixed(self, server_round: int | None) -> frozenset[str]:
        alternates = self.lora_form == "rolora"
        if self.lora_form == "lora" or (alternates and server_round is None):
            return frozenset()
        still = A
        if alternates and server_round is not None and server_round % 2 == 0:
            still = B
        return frozenset(factor_name(target, still) for target in self.targets)

    def keep(self, layers: Sequence[int]) -> LoraAdapter:
        kept = check_kept(self, layers)
        return replace(self, targets=tuple(t for t in self.targets if t.layer in (None, *kept)))

    def weight_changes(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """s B A for each map, transposed where the map stores its matrix so (GPT-2's ``Conv1D``)."""
        modules = dict(self.model.named_modules())
        found = {}
        for target in self.targets:
            a, b = (params[factor_name(target, f)].detach().double() for f in (A, B))
            change = self.scale * (b @ a)
            stored_by_input = isinstance(modules[target.module], Conv1D)
            found[f"{target.module}.weight"] = change.T if stored_by_input else change
        return found

    def first_layer(self, count: int) -> int:
        if any(target.layer is None for target in self.targets):
            return 0
        return super().first_layer(count)

    @property
    def recordable(self) -> frozenset[str]:
        return frozenset(
            factor_name(target, factor) for target in self.targets for factor in (A, B)
        )

    def scope(
        self,
        params: Mapping[str, Tensor],
        batch: tuple[int, int] | None = None,
        tape: Tape | None = None,
    ) -> AbstractContextManager[None]:
        changes = {}
        for target in self.targets:
            names = (factor_name(target, A), factor_name(target, B))
            a, b = (shared_or_own(params[name], 2, batch) for name in names)
            own = batch if 3 in (a.dim(), b.dim()) else None
            changes[target.module] = LowRank(a, b, self.scale, own, target.module, names, tape)
        return changed(self.model, changes)


def factor_name(target: Target, factor: str) -> str:
    """Name of the trained tensor that holds a factor of one map."""
    place = "all" if target.layer is None else f"{target.layer:02d}"
    return f"lora.{place}.{target.module}.{factor}"


def initial_factors(adapter: LoraAdapter, rng: np.random.Generator) -> dict[str, Tensor]:
    """A with random orthonormal rows, B = 0; float32 on the CPU."""
    found = {}
    for target in adapter.targets:
        found[factor_name(target, A)] = orthonormal_rows(adapter.rank, target.inputs, rng)
        found[factor_name(target, B)] = torch.zeros(target.outputs, adapter.rank)
    return found


def orthonormal_rows(rank: int, size: int, rng: np.random.Generator) -> Tensor:
    """A uniformly random (rank, size) matrix with orthonormal rows, float32."""
    drawn = rng.standard_normal((size, rank))
    q, r = np.linalg.qr(drawn)
    return torch.from_numpy((q * np.sign(np.diag(r))).T.astype(np.float32).copy())


def refactored(adapter: LoraAdapter, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same B A, written as U S times V^T: A = V^T has orthonormal rows, and B = U S.

    Post-processing of released tensors. The rows of the new A span those of the old one, so that without training A
    the subspace stays what it was: what changes is its basis, by which Adam scales its steps.

    Method: Lee et al. 2025 (FedSVD), section 3.

    Args:
        params: all tensors; others than the adapter's factors are returned as they are.
    """
    found: dict[str, Any] = dict(params)
    for target in adapter.targets:
        first, second = factor_name(target, A), factor_name(target, B)
        a, b = params[first].double(), params[second].double()
        # B A = B R^T Q^T with A^T = Q R: the decomposition is of the small matrix B R^T.
        q, r = torch.linalg.qr(a.T)
        u, s, vt = torch.linalg.svd(b @ r.T, full_matrices=False)
        if float(s.max()) == 0.0:  # nothing was trained yet: the directions would be arbitrary
            continue
        found[first], found[second] = (vt @ q.T).float(), (u * s).float()
    return found
