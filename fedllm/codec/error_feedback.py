"""Error feedback: what a client's code lost, kept by the client and added to its next update.

The client adds the residual to its update *before* clipping (Seide et al. 2014; Karimireddy et al.
2019), so that what is sent stays inside the clipping norm C:

    v = clip(update + residual);  send the code of v;  residual = v - decoded(v)

**Unit client.** Whatever the residual, v has norm at most C, and the sensitivity is that of v alone. The
residual is a function of this client's own data, and is private state: it never leaves the client.
**Unit example.** The residual may hold contributions of examples of earlier rounds without noise,
which the clipping of this round's examples does not bound. There it must be computed from vectors that
carried their noise already (``noise = "before-encoding"``), and added after the noise: it is then
post-processing. :meth:`fedllm.settings_codec.CodecSettings.check_unit` refuses the rest.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedllm import durable


class ErrorFeedback:
    """The residual of one client over the rounds of a run, in one file.

    The file holds the residual before and after the last round, so that a round that is repeated
    after a crash starts from the same residual and sends the same value.

    Raises:
        ValueError: the file is not a residual of this codec.
    """

    def __init__(self, path: Path, dimension: int, version: str) -> None:
        """Read the file, where there is one.

        Args:
            version: of the codec; a residual of another codec is refused.
        """
        self.path, self.dimension, self.version = path, dimension, version
        self._round = -1
        self._before = self._after = torch.zeros(dimension)
        if path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            with safe_open(self.path, "pt") as opened:
                meta = json.loads((opened.metadata() or {})["fedllm"])
                before, after = (opened.get_tensor(name) for name in ("before", "after"))
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ValueError(f"Expected the residual of a client in {self.path}: {error}") from None
        fits = all(
            t.shape == (self.dimension,) and t.dtype == torch.float32 and bool(t.isfinite().all())
            for t in (before, after)
        )
        if not fits or meta.get("version") != self.version:
            raise ValueError(
                f"Expected a residual of {self.dimension} numbers of codec {self.version[:12]} in "
                f"{self.path}, got {list(before.shape)} of {str(meta.get('version'))[:12]}"
            )
        self._round, self._before, self._after = int(meta["round"]), before, after

    def residual(self, number: int) -> Tensor:
        """What to add to the update of round ``number``, [d].

        Raises:
            ValueError: a round before the last one that was stored.
        """
        if number < self._round:
            raise ValueError(
                f"Expected a round >= {self._round} for the residual in {self.path}, got {number}"
            )
        return (self._before if number == self._round else self._after).clone()

    def store(self, number: int, sent: Tensor, decoded: Tensor) -> None:
        """Keep ``sent - decoded`` for the round after ``number``; durable when it returns.

        Args:
            sent: the clipped vector v before the codec, [d].
            decoded: what the codec makes of it, [d].

        Raises:
            ValueError: shapes or values that do not fit, or a round before the last one.
        """
        before = self.residual(number)
        after = (sent.detach() - decoded.detach()).float().cpu()
        if after.shape != (self.dimension,) or not bool(after.isfinite().all()):
            raise ValueError(f"Expected a finite residual of {self.dimension} numbers, got others")
        meta = json.dumps({"round": number, "version": self.version})
        data = save({"before": before, "after": after}, metadata={"fedllm": meta})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(self.path, data, mode=0o600)
        self._round, self._before, self._after = number, before, after
