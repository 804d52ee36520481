"""The tree of an experiment's settings, before checks across sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field

from fedllm.settings.adapter import AdapterSettings
from fedllm.settings.codec import CodecSettings
from fedllm.settings.flatness import AwpSettings, LayersSettings, PublicSettings, TeacherSettings
from fedllm.settings.privacy import ClippingSettings, PrivacySettings, SecureSettings
from fedllm.settings.section import Section
from fedllm.settings.sections import (
    ClientSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    OutputSettings,
    PrefixSettings,
    SimulationSettings,
    TaskSettings,
)
from fedllm.settings.server import ServerSettings
from fedllm.settings.zeroth_order import EndpointSettings, ZerothOrderSettings


class SettingsTree(Section):
    """The sections of one experiment, each checked by itself; :class:`fedllm.settings.experiment.Settings` adds
    checks across them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        "experiment", description="Short name of the experiment; part of the run folder's name."
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0,
        description='Seed of partitions and initialisation, and with privacy.randomness = "seeded" of sampling and noise. '
        "A non-negative integer of any size; 128 bits of it are used.",
    )
    model: ModelSettings = ModelSettings()
    adapter: AdapterSettings = AdapterSettings()
    prefix: PrefixSettings = PrefixSettings()
    task: TaskSettings = TaskSettings(labels=("negative", "neutral", "positive"))
    data: DataSettings = DataSettings()
    client: ClientSettings = ClientSettings()
    server: ServerSettings = ServerSettings()
    privacy: PrivacySettings = PrivacySettings()
    secure: SecureSettings = SecureSettings()
    clipping: ClippingSettings = ClippingSettings()
    codec: CodecSettings = CodecSettings()
    awp: AwpSettings = AwpSettings()
    zeroth_order: ZerothOrderSettings = ZerothOrderSettings()
    endpoint: EndpointSettings = EndpointSettings()
    layers: LayersSettings = LayersSettings()
    teacher: TeacherSettings = TeacherSettings()
    public: PublicSettings = PublicSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    simulation: SimulationSettings = SimulationSettings()
    output: OutputSettings = OutputSettings()

    @property
    def prefix_length(self) -> int:
        """Virtual positions of the prefix; 0 where none is trained."""
        return self.prefix.length if self.adapter.form == "prefix" else 0

    @property
    def one_by_one(self) -> bool:
        """True if something takes examples' gradients one by one: own perturbations, a codec, scores of layers."""
        own = self.awp.form == "per-example" or self.codec.active
        return own or self.layers.form != "none"

    @property
    def adapter_layers(self) -> Literal["all"] | tuple[int, ...]:
        """Numbers of the layers that the adapter changes: ``prefix.layers`` or ``adapter.layers``."""
        return self.prefix.layers if self.adapter.form == "prefix" else self.adapter.layers

    def with_layers(self, layers: Sequence[int]) -> Self:
        """Return the settings with these layers of the adapter alone."""
        section = "prefix" if self.adapter.form == "prefix" else "adapter"
        changed = getattr(self, section).model_copy(update={"layers": tuple(layers)})
        return self.model_copy(update={section: changed})
