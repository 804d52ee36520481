"""Linear codec: the orthonormal rows that a prior selects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedllm.codec.base import Codec, State
from fedllm.codec.prior import Prior
from privacy.randomness import generator

_TOLERANCE = 1e-6
_NEGLIGIBLE = 1e-4


class Linear(Codec):
    """Rows: unit vectors of the chosen coordinates, and directions orthonormal to them.

    P = [E_S; V] with S the chosen coordinates and V having zeros there and orthonormal rows, so that
    P P^T = I: ||P g|| <= ||g||, the Lipschitz constant is 1, and ``reconstruct`` = P^T makes
    ``reconstruct(project(g))`` the orthogonal projection of g. Only S and V are stored, no k x d
    matrix, and of V only the columns of its *support*, the coordinates where a direction is not zero. The
    rounding of V to float32 moves the constant by less than 1e-5 (checked when made); codes are
    clipped again before noise.

    Args:
        coordinates: S, ascending, int [s].
        directions: V on its support, [r, c].
        support: the coordinates of V's columns, ascending, int [c]; None: all d.

    Raises:
        ValueError: indices or directions that are not as said.
    """

    name: ClassVar[str] = "linear"
    linear = True
    lipschitz = 1.0

    def __init__(
        self,
        dimension: int,
        coordinates: Tensor,
        directions: Tensor,
        support: Tensor | None = None,
    ) -> None:
        self.dimension = dimension
        self._coordinates = coordinates.long()
        self._directions = directions.float()
        self._support = torch.arange(dimension) if support is None else support.long()
        self.code_dimension = len(coordinates) + len(directions)
        if self.code_dimension == 0 or not all(
            _ascending(places, dimension) for places in (self._coordinates, self._support)
        ):
            raise ValueError(
                f"Expected ascending coordinates from 0 to {dimension - 1} in codec linear"
            )
        if tuple(directions.shape[1:]) != (len(self._support),):
            raise ValueError(
                f"Expected directions of shape (r, {len(self._support)}), got "
                f"{tuple(directions.shape)}"
            )
        gram = self._directions.double() @ self._directions.double().T
        off = (gram - torch.eye(len(directions), dtype=torch.float64)).abs()
        chosen = torch.isin(self._support, self._coordinates)
        crossing = self._directions[:, chosen].abs()
        if float(off.max() if off.numel() else 0.0) > _TOLERANCE or bool((crossing != 0).any()):
            raise ValueError("Expected orthonormal rows in codec linear, got others")

    @classmethod
    def from_prior(cls, prior: Prior, code_dimension: int, seed: int) -> Linear:
        """Return the best code of ``code_dimension`` rows for a prior, of those of this shape.

        *Which rows.* For g with second moments E[g g^T] the orthonormal P of k rows that loses least,
        E||g - P^T P g||^2, spans the leading k eigenvectors (Eckart and Young 1936). In a basis
        where they are diagonal these are the k largest second moments: reverse water-filling over
        the prior's variances (Cover and Thomas, section 10.3) at whole dimensions, where a
        dimension is above the water or left out, across all blocks alike. So k/d of a white
        prior's energy is kept, and no choice keeps more. The prior's basis competes with the
        coordinates by its variances. What of a direction lies in chosen coordinates is kept by
        them already: the rest is orthonormalised against them, and a direction that has less than
        a thousandth left makes room for the next coordinate.

        *Support.* Coordinates that together hold less than ``_NEGLIGIBLE`` of the directions' energy
        (each direction weighted by its variance) are left out of all of them: what a
        silo must be sent of a direction is its support.

        *Ties* (all coordinates of a layer under ``layerwise``, or a shrunk prior) are broken by a
        seeded random order: a fixed one would prefer the first heads for nothing.

        Raises:
            ValueError: code_dimension is not between 1 and d.
        """
        d = prior.dimension
        if not 1 <= code_dimension <= d:
            raise ValueError(f"Expected 1 <= k <= {d}, got k={code_dimension}")
        shuffle = torch.from_numpy(generator(seed, "codec", "linear", d).permutation(d))
        order = shuffle[prior.second_moments[shuffle].argsort(descending=True, stable=True)]
        basis = prior.basis[:code_dimension].double()
        values = prior.basis_variance[: len(basis)].double()
        while True:
            competing = torch.cat([values, prior.second_moments[order[:code_dimension]].double()])
            level = competing.topk(code_dimension).values[-1]
            basis, values = basis[values >= level], values[values >= level]
            chosen = order[: code_dimension - len(basis)].sort().values
            support = _support(basis, values, chosen)
            rest = basis[:, support]
            left, sizes, right = torch.linalg.svd(rest, full_matrices=False)
            if len(sizes) == len(basis) and bool((sizes.square() > 1e-3).all()):
                break
            # The combination that the coordinates keep already gives up its place.
            keep = sizes.square() > 1e-3
            basis = left[:, keep].T @ basis
            values = (left[:, keep].square() * values[:, None]).sum(0)
        return cls(d, chosen, right.float(), support)

    def project(self, vectors: Tensor) -> Tensor:
        coordinates = self._coordinates.to(vectors.device)
        kept = vectors[..., coordinates]
        part = vectors if self._all else vectors[..., self._support.to(vectors.device)]
        along = part @ self._directions.to(vectors.device).T
        return torch.cat([kept, along], dim=-1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        count = len(self._coordinates)
        result = codes[..., count:] @ self._directions.to(codes.device)
        if not self._all:
            along = result
            result = codes.new_zeros((*codes.shape[:-1], self.dimension))
            result[..., self._support.to(codes.device)] = along
        result[..., self._coordinates.to(codes.device)] = codes[..., :count]
        return result

    def state(self) -> State:
        tensors = {
            "coordinates": self._coordinates.to(torch.int32),
            "directions": self._directions,
            "support": self._support.to(torch.int32),
        }
        return tensors, {"name": self.name, "dimension": self.dimension}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Linear:
        return cls(
            int(meta["dimension"]),
            tensors["coordinates"],
            tensors["directions"],
            tensors["support"],
        )

    @property
    def _all(self) -> bool:
        return len(self._support) == self.dimension


def _ascending(places: Tensor, dimension: int) -> bool:
    inside = (places >= 0) & (places < dimension)
    return bool(inside.all()) and bool((places[1:] > places[:-1]).all())


def _support(basis: Tensor, values: Tensor, chosen: Tensor) -> Tensor:
    """Return the coordinates, ascending, that hold all but ``_NEGLIGIBLE`` of the energy of ``values``-weighted
    directions [r, d], except those in ``chosen``."""
    energy = (values[:, None] * basis.square()).sum(0)
    energy[chosen] = 0.0
    order = energy.argsort(descending=True, stable=True)
    reached = energy[order].cumsum(0)
    count = int((reached < (1 - _NEGLIGIBLE) * reached[-1]).sum()) + 1 if len(basis) else 0
    return order[: max(count, len(basis))].sort().values
