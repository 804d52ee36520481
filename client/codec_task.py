"""Receive a codec: check it against settings, limits and model, then keep it."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context

from client.config import silo_config_of
from client.limits import check_codec
from client.node import admitted
from client.task_arrays import array_forms, read_arrays
from client.task_fields import TaskFields
from fedllm.codec.store import keep_in_store
from fedllm.silo.codec_needs import check_codec_needs
from fedllm.training.tunable import shared_tunable, trained_size

MOST_TENSORS = 16
"""Tensors of a codec at most; an autoencoder has seven."""


def keep_codec(record: ArrayRecord, fields: TaskFields, context: Context) -> None:
    """Keep the codec of a task, which must be the one that its settings have for this silo's model.

    Raises:
        LimitRefused, ModelError, DeviceMemoryError: as :func:`client.node.admitted`.
        ValueError: it is not such a codec, or not the one of its version; nothing was kept.
    """
    own = silo_config_of(context.node_config)
    settings = fields.settings
    if own is not None:
        settings = admitted(own, fields)
        check_codec(own, fields.codec_meta)
    dimension = trained_size(shared_tunable(settings))
    forms = array_forms(record, "a codec", MOST_TENSORS)
    check_codec_needs(fields.codec_meta, forms, settings.codec, dimension)
    tensors = read_arrays(record, forms, "a codec")
    keep_in_store(tensors, fields.codec_meta, fields.codec_version)
