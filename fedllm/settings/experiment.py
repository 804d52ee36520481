"""The settings of one experiment: one typed tree, every key documented.

The tree is written as TOML (one file an experiment, see ``simulations/``), read and resolved by
:mod:`fedllm.settings.io`, saved with each run, and sent along with each message, so that server and
clients hold the same one. Nothing here reads files or knows Flower.
"""

from __future__ import annotations

from pydantic import model_validator

from fedllm.settings.checks.adapter import check_adapter
from fedllm.settings.checks.black_box import check_zeroth_order
from fedllm.settings.checks.fixed_shape import check_fixed_shape
from fedllm.settings.checks.sections import (
    check_clipping,
    check_codec,
    check_flatness,
    check_relation,
    check_server,
)
from fedllm.settings.checks.secure_sum import check_secure_sum
from fedllm.settings.checks.task import check_task_sections
from fedllm.settings.tree import SettingsTree


class Settings(SettingsTree):
    """One experiment: sections that fit together.

    Example:
        >>> settings = fedllm.Settings(model={"name": "minilm"}, data={"source": "tweets"})
        >>> settings.privacy.epsilon
        3.0
    """

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if self.data.sizes == "private" and self.client.sampling_rate is None:
            raise ValueError(
                "Expected client.sampling_rate for data.sizes=private (a rate made from batch_size "
                "would tell the silo's size), got none"
            )
        if self.data.source != "tweets" and self.data.path is None:
            raise ValueError(f"Expected data.path for data.source={self.data.source}, got none")
        check_task_sections(self)
        if self.privacy.unit == "client" and self.evaluation.clients == "private":
            raise ValueError(
                "Expected evaluation.clients off or raw for privacy.unit=client (a silo's counts "
                "have no useful client-level release), got evaluation.clients=private"
            )
        check_adapter(self)
        check_relation(self)
        check_codec(self)
        check_clipping(self)
        check_fixed_shape(self)
        check_flatness(self)
        check_zeroth_order(self)
        check_server(self)
        check_secure_sum(self)
        return self

    def for_silo(self, name: str) -> Settings:
        """The settings as they hold for one silo: its own values in the place of the run's, and no
        other silo's values."""
        if not self.privacy.silos:
            return self
        own = self.privacy.silos.get(name)
        values = {} if own is None else own.model_dump(exclude_none=True)
        client: dict[str, object] = {
            key: values.pop(key) for key in ("batch_size", "sampling_rate") if key in values
        }
        return self.model_copy(
            update={
                "client": self.client.model_copy(update=client),
                "privacy": self.privacy.model_copy(update=values | {"silos": {}}),
            }
        )
