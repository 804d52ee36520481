"""Receive what a server sends ahead of its tasks: check it against settings, limits and model, then keep it."""

from __future__ import annotations

from typing import Any

from flwr.app import Context, Message

from client.config import silo_config_of
from client.node import admitted
from client.task_arrays import array_forms, read_arrays
from client.task_fields import read_fields
from fedllm.budget.local_policy import LimitRefused
from fedllm.silo.extensions.factory import make_silo_extensions
from fedllm.task_errors import TaskRefused
from fedllm.training.tunable import shared_tunable, trained_size


def keep_delivery(message: Message, context: Context) -> None:
    """Keep a delivery, which must be one that its settings have for this silo's model; reads no data.

    Raises:
        LimitRefused, ModelError, DeviceMemoryError: as :func:`client.node.admitted`.
        TaskRefused: it is not such a delivery, or not what it is said to be; nothing was kept.
    """
    kind = message.metadata.message_type
    fields = read_fields(message, kind)
    own, settings, limits = silo_config_of(context.node_config), fields.settings, None
    if own is not None:
        settings, limits = admitted(own, fields), own.limits.model_dump()
    (delivery,) = [
        each.deliveries()[kind]
        for each in make_silo_extensions(settings)
        if kind in each.deliveries()
    ]
    content: Any = message.content
    record = content.array_records[delivery.record]
    forms = array_forms(record, f"a {delivery.record}", delivery.most)
    dimension = trained_size(shared_tunable(settings))
    try:
        delivery.check(fields.extras, forms, dimension, limits)
        delivery.keep(fields.extras, read_arrays(record, forms, f"a {delivery.record}"))
    except LimitRefused:
        raise
    except ValueError as error:  # of the server's own arrays, before anything else
        raise TaskRefused(str(error)) from error
