"""Check that PEFT computes the same with an exported adapter as the run did.

PEFT and transformers are two projects: an argument that one renames can make the other generate as if the
adapter were not there, without a word. So an adapter is called a PEFT adapter only after PEFT has loaded it and has given
the run's own outputs, for a decoder also at each step of a generated continuation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedllm.adapter.quiet_peft import quiet_peft
from fedllm.adapter.same_outputs import compare_outputs, twin
from fedllm.models.adapters.base import Adapter
from fedllm.models.backbone import Backbone


def why_peft_differs(
    backbone: Backbone, adapter: Adapter, params: Mapping[str, Tensor], folder: str | Path
) -> str:
    """Return why the PEFT adapter in ``folder`` is not this one to PEFT; empty where it is.

    PEFT is given a twin of the frozen model that is in memory: no second copy of its weights is needed, and nothing
    of PEFT stays on the model.

    Args:
        params: the adapter's tensors, without a batch dimension.
    """
    with quiet_peft():
        import peft
    import transformers

    who = f"PEFT {peft.__version__} with transformers {transformers.__version__}"
    try:
        with quiet_peft():
            model: Any = peft.PeftModel.from_pretrained(twin(backbone.model), str(folder)).eval()
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return f"{who} cannot use it: {type(error).__name__}: {text}"
    return compare_outputs(backbone, adapter, params, model, who).why
