"""The Flower ClientApp: answers train, evaluate and query messages for one silo.

Thin: which silo this node serves (:mod:`client.node`), messages to plain values and back. The work is
:mod:`fedllm.silo.silo`. Refusals are replies with a status and a reason.

Guarantee: a reason is one of two constants, or a function of the task, the settings, the model, the silo's own
limits, its ledger and public numbers (:data:`PUBLIC`), whatever was raised. The same in a simulation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.config import SiloConfigError, silo_config_of
from client.delivery import keep_delivery
from client.extract import add_extract
from client.node import describe_node, open_silo
from client.redaction import redact_paths
from client.replies import answer_of, keep, task_key
from client.returned_head import require_returned_head
from client.task_arrays import read_params
from client.task_fields import QUERY, TRAIN, TaskFields, form_of, read_fields
from fedllm import messages as names
from fedllm.budget.local_policy import LimitRefused
from fedllm.files.printable_error import printable_error
from fedllm.models.embedded import ModelError
from fedllm.models.endpoint import EndpointError
from fedllm.models.memory import DeviceMemoryError
from fedllm.settings.io import SettingsError
from fedllm.silo.extensions.base import Answer
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.task_errors import DeliveryMissing, NotTakingPart, TaskFailed, TaskRefused
from privacy.budget import BudgetExceeded
from privacy.ledger.ledger import LedgerError


class SiloApp(ClientApp):
    """Flower's app with requests and deliveries whose names follow from a run's settings, not from this file."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the reply to a message."""
        kind = message.metadata.message_type
        if kind in (TRAIN, QUERY, names.ASK_EXTRACT):
            return super().__call__(message, context)
        return (receive if kind.startswith(names.SEND) else request)(message, context)


app = SiloApp()
log = logging.getLogger("fedllm.client")

PUBLIC = (SettingsError, TaskRefused, ModelError, LedgerError, DeviceMemoryError)
"""Errors whose text may leave: raised before anything is spent, of values that are no function of the data."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Run one round of local training; reply with the released update, or with the reason for having none."""

    def work(worker: SiloWorker, fields: TaskFields) -> RecordDict:
        reply = worker.train(_task(message, worker, fields))
        metrics: dict[str, Any] = {
            **reply.beside.numbers,
            names.NOISE_MULTIPLIER: reply.noise_multiplier,
            names.SAMPLING_RATE: reply.sampling_rate,
            names.STEPS: reply.steps,
        }
        for name, std in (reply.noise_std or {}).items():
            metrics[names.NOISE_STD + name] = std
        told: dict[str, Any] = {
            **reply.beside.texts,
            names.RUN_ID: fields.run_id,
            names.ROUND: fields.round,
        }
        content = _records(reply.beside)
        content[names.UPDATE] = ArrayRecord(reply.update)
        content[names.METRICS] = MetricRecord(metrics)
        content[names.INFO] = ConfigRecord(told)
        return content

    return _answer(message, context, work)


def request(message: Message, context: Context) -> Message:
    """Answer what an optional part of the run asks for: evaluation, and each query of its own."""

    def work(worker: SiloWorker, fields: TaskFields) -> RecordDict:
        return _records(worker.answer(_task(message, worker, fields)))

    return _answer(message, context, work)


def receive(message: Message, context: Context) -> Message:
    """Keep what the server sends ahead of its tasks, after checking it against settings, model and limits."""
    info: dict[str, Any] = {names.STATUS: names.OK, names.REASON: ""}
    try:
        keep_delivery(message, context)
    except Exception as error:
        info |= _refusal(error, context)
    return Message(RecordDict({names.INFO: ConfigRecord(info)}), reply_to=message)


@app.query("extract")
def extract(message: Message, context: Context) -> Message:
    """Return a signed extract of the silo's ledger, as it is now."""
    info: dict[str, Any] = {
        names.SILO: _own_name(context),
        names.STATUS: names.OK,
        names.REASON: "",
    }
    try:
        read_fields(message, names.ASK_EXTRACT)
    except Exception as error:
        info |= _refusal(error, context)
    return _reply(message, context, RecordDict({names.INFO: ConfigRecord(info)}))


@app.query()
def query(message: Message, context: Context) -> Message:
    """Describe this node: silo, versions, device, and its number of examples if that is public."""
    try:
        info, metrics = describe_node(read_fields(message, QUERY), context)
    except Exception as error:
        info, metrics = {names.SILO: _own_name(context), **_refusal(error, context)}, {}
    content = RecordDict({names.INFO: ConfigRecord(info), names.METRICS: MetricRecord(metrics)})
    return Message(content, reply_to=message)


def _answer(
    message: Message,
    context: Context,
    work: Callable[[SiloWorker, TaskFields], RecordDict],
) -> Message:
    info: dict[str, Any] = {names.SILO: "", names.STATUS: names.OK, names.REASON: ""}
    content = RecordDict()
    try:
        fields = read_fields(message, message.metadata.message_type)
        worker = open_silo(fields, context)
        info[names.SILO] = worker.silo.name
        own = silo_config_of(context.node_config)
        if own is not None:
            require_returned_head(own, message, worker.ledger)
            content = _work_or_last_answer(message, worker, lambda: work(worker, fields))
        else:  # simulation, where nothing is lost on the way
            content = work(worker, fields)
        info |= dict(content.config_records.get(names.INFO, {}))
    except Exception as error:
        info |= _refusal(error, context)
    content[names.INFO] = ConfigRecord(info)
    return _reply(message, context, content)


def _reply(message: Message, context: Context, content: RecordDict) -> Message:
    """Return the reply; of a silo with its own config with the signed extract of its ledger."""
    try:
        own = silo_config_of(context.node_config)
    except SiloConfigError:
        own = None
    if own is not None:
        content = RecordDict(dict(content.items()))  # what is kept to be given again has no extract
        add_extract(own, message, content)
    return Message(content, reply_to=message)


def _work_or_last_answer(
    message: Message, worker: SiloWorker, work: Callable[[], RecordDict]
) -> RecordDict:
    """Return the result of the work; repeat the last answer if the last task comes again."""
    silo, task = str(worker.ledger.path), task_key(message)
    known = answer_of(silo, task)
    if known is not None:
        log.info("a task came again: it gets the answer that it got, which is no new release")
        return known
    content = work()
    keep(silo, task, content)
    return content


def _task(message: Message, worker: SiloWorker, fields: TaskFields) -> SiloTask:
    """Return the task of a message, with the tensors that the worker's model and extensions need."""
    kind, arrays = message.metadata.message_type, message.content.array_records
    downlink, params = worker.settings.codec.downlink, {}
    form = form_of(kind, worker.extensions)
    if names.PARAMS in form.records:
        params = read_params(arrays[names.PARAMS], worker.initial, downlink, "parameters")
    extras = dict(fields.extras)
    for record in form.extras.tensors:
        extras[record] = read_params(arrays[record], worker.initial, "none", f"a {record}")
    return SiloTask(params, fields.round, fields.planned_rounds, extras, kind)


def _records(answer: Answer) -> RecordDict:
    """Return an answer as records of a reply."""
    content = RecordDict({name: ArrayRecord(dict(part)) for name, part in answer.tensors.items()})
    if answer.numbers:
        content[names.METRICS] = MetricRecord(dict(answer.numbers))
    if answer.texts:
        content[names.INFO] = ConfigRecord(dict(answer.texts))
    return content


def _refusal(error: Exception, context: Context) -> dict[str, str]:
    """Status and reason of a task that raised; the error itself stays in the silo's own log."""
    if isinstance(error, DeliveryMissing):
        return {names.STATUS: names.NEEDS_DELIVERY, names.REASON: _told(error, context)}
    if isinstance(error, BudgetExceeded | LimitRefused):
        log.warning("%s", error)
        return {names.STATUS: names.LEFT, names.REASON: _told(error, context)}
    if isinstance(error, NotTakingPart):
        return {names.STATUS: names.LEFT, names.REASON: str(NotTakingPart())}
    log.error("refused a task\n%s", printable_error(error))
    if isinstance(error, PUBLIC) and not isinstance(error, EndpointError):
        return {names.STATUS: names.FAILED, names.REASON: _told(error, context)}
    return {names.STATUS: names.FAILED, names.REASON: str(TaskFailed())}


def _told(error: Exception, context: Context) -> str:
    """Return an error's message in one line; of a silo with its own config without paths of its machine."""
    text = str(error)
    if _has_silo_config(context):
        try:
            own = silo_config_of(context.node_config)
        except SiloConfigError:
            own = None
        text = redact_paths(text, own)
    return " ".join(text.split())[:2000]


def _own_name(context: Context) -> str:
    """Return the silo's name by its own file; empty where there is none that can be read."""
    try:
        own = silo_config_of(context.node_config)
    except SiloConfigError:
        return ""
    return "" if own is None else own.name


def _has_silo_config(context: Context) -> bool:
    try:
        return silo_config_of(context.node_config) is not None
    except SiloConfigError:  # there is one, and it is not valid
        return True
