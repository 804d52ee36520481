"""What is measured and on whose text."""

from __future__ import annotations

from ..mutation import Mutation

_SUBJECTS = "fedllm/flatness/subjects.py"
_LANDSCAPE = "tests/federation/test_landscape.py"

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
)
