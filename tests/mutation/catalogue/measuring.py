"""What is measured and on whose text."""

from __future__ import annotations

from ..mutation import Mutation

_SUBJECTS = "simulations/landscape/checkpoints.py"
_RUNS = "simulations/attacks/membership/federated_runs.py"
_ONE_RUN = "simulations/attacks/membership/run.py"
_MEMBERSHIP = "tests/integration/test_flat_membership.py"
_LANDSCAPE = "tests/integration/test_landscape.py"

MUTATIONS = (
    Mutation(
        "landscape-on-what-another-run-trained-on",
        _SUBJECTS,
        "{k: r for k, r in found.items() if k in own}",
        "found | own",
        "Text that one run holds out and another trained on is measured as held out from all.",
        (f"{_LANDSCAPE}::test_no_run_trained_on_what_is_measured",),
    ),
    Mutation(
        "private-measurement-without-a-label",
        _SUBJECTS,
        'origin, label = "the silos\' training examples", PRIVATE_LABEL',
        'origin, label = "the silos\' training examples", None',
        "Numbers made of private examples without noise are printed like those of public text.",
        (f"{_LANDSCAPE}::test_no_run_trained_on_what_is_measured",),
    ),
    Mutation(
        "proven-maximum-without-a-guarantee",
        _RUNS,
        "if not all(is_private(event) for events in spent for event, _ in events):",
        "if not any(is_private(event) for events in spent for event, _ in events):",
        "A form without a guarantee is shown with a theoretical upper bound beside it.",
        (f"{_MEMBERSHIP}::test_a_row_with_a_labelled_form_has_no_bound",),
    ),
    Mutation(
        "members-among-the-others",
        _ONE_RUN,
        "for key, r in once(records).items() if key not in members}",
        "for key, r in once(records).items()}",
        "Members count as others, and the measured leak shrinks.",
        (f"{_MEMBERSHIP}::test_others_trained_nothing",),
    ),
)
