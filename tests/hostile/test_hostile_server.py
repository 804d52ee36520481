"""No task of a hostile server makes a silo spend and then fail, crash, or keep what was sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from client.task_fields import QUERY, TRAIN
from fedllm import messages as names

from .__main__ import hosted
from .cases import WITH_EXTRAS, Case, all_cases
from .honest import KINDS, form_of_kind, message_of, parts, settings_for
from .silo import (
    ANSWERED,
    CRASHED,
    KEPT_DISK,
    KEPT_MEMORY,
    REFUSED,
    SPENT,
    HostedSilo,
    Outcome,
    quiet,
    resident,
)


@pytest.fixture(scope="module")
def silo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedSilo]:
    with quiet():
        yield hosted(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def cases(silo: HostedSilo) -> list[Case]:
    return list(all_cases(silo, few=True))


def honest(silo: HostedSilo, kind: str) -> Outcome:
    return silo.ask(lambda s: message_of(kind, parts(s, kind, settings_for(s, kind))))


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_with_one_thing_wrong(silo: HostedSilo, cases: list[Case], kind: str) -> None:
    """And the honest task, of which each is a change, is answered before and after. `python -m tests.hostile` has all."""
    assert honest(silo, kind).verdict == ANSWERED
    before, wrong, refused = resident(collected=True), [], 0
    for case in cases:
        if case.kind != kind:
            continue
        found = silo.ask(case.build)
        if found.verdict in (SPENT, CRASHED):
            wrong.append(f"{case}: {found.verdict}: {found.reason}")
        elif found.verdict == ANSWERED and not case.may_answer:
            wrong.append(f"{case}: answered")
        elif found.verdict == REFUSED and found.disk > KEPT_DISK:
            wrong.append(f"{case}: {found.disk} bytes more on disk")
        elif found.verdict == REFUSED and len(found.reason) > 2000:
            wrong.append(f"{case}: a reason of {len(found.reason)} characters")
        refused += found.verdict == REFUSED
    assert not wrong, "\n".join(wrong)
    assert refused > 20
    assert resident(collected=True) - before < KEPT_MEMORY
    assert honest(silo, kind).verdict == ANSWERED


VALUES = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.booleans()
    | st.text(max_size=80).filter(lambda text: text.isprintable())
    | st.binary(max_size=80)
    | st.lists(st.integers(-9, 99), max_size=4)
    | st.lists(st.floats(), max_size=4)
)
FORMS = [form_of_kind(kind) for kind in KINDS]
FORMS += [form_of_kind(TRAIN, **changes) for changes, _, _ in WITH_EXTRAS]
FIELD_NAMES = sorted({name for form in FORMS for name in form.needed_fields | form.optional})


@settings(
    max_examples=60,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(KINDS),
    changed=st.dictionaries(st.sampled_from(FIELD_NAMES) | st.just("x"), VALUES, max_size=3),
    without=st.sets(st.sampled_from(FIELD_NAMES), max_size=2),
)
def test_tasks_with_several_things_wrong(
    silo: HostedSilo, kind: str, changed: dict[str, object], without: set[str]
) -> None:
    def build(silo: HostedSilo) -> Message:
        found = parts(silo, kind, settings_for(silo, kind))
        fields = found[names.CONFIG] | changed
        found[names.CONFIG] = {name: v for name, v in fields.items() if name not in without}
        return message_of(kind, found)

    found = silo.ask(build)
    assert found.verdict in (REFUSED, ANSWERED), found.reason
    assert found.rows == 0 or found.verdict == ANSWERED


def test_a_task_that_comes_again_costs_nothing(silo: HostedSilo) -> None:
    first = parts(silo, TRAIN, settings_for(silo, TRAIN))
    answered = [silo.ask(lambda s: message_of(TRAIN, first)) for _ in range(3)]
    assert [found.verdict for found in answered] == [ANSWERED] * 3
    assert [found.rows for found in answered] == [1, 0, 0]


def test_rounds_out_of_order_and_of_other_runs_are_releases_within_their_plans(
    silo: HostedSilo,
) -> None:
    """Each is paid as what it is; what is beyond the run's plan is refused, but for the last one answered."""
    base = parts(silo, TRAIN, settings_for(silo, TRAIN))

    def task(number: int) -> Outcome:
        fields = base[names.CONFIG] | {names.ROUND: number}
        return silo.ask(lambda s: message_of(TRAIN, base | {names.CONFIG: fields}))

    found = [task(number) for number in (3, 1, 2, 1, 3, 2)]
    assert [one.verdict for one in found] == [ANSWERED] * 3 + [REFUSED] * 2 + [ANSWERED]
    assert [one.rows for one in found] == [1, 1, 1, 0, 0, 0]


def test_a_node_that_is_no_silo_of_the_data_refuses_by_name(silo: HostedSilo) -> None:
    empty = silo.ask(lambda s: Message(RecordDict(), dst_node_id=5, message_type=QUERY))
    assert empty.verdict == REFUSED
    assert (
        "Expected the records of a query task: config (and perhaps ledger); got none"
        in empty.reason
    )
    other = silo.ask(
        lambda s: Message(
            RecordDict({names.CONFIG: ConfigRecord({})}), dst_node_id=5, message_type=TRAIN
        )
    )
    assert "Expected the records of a train task: config, params" in other.reason
