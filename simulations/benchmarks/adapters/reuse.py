"""Speed of private gradient sums with the states of the frozen trunk kept, and without.

    python -m simulations.benchmarks.adapters.reuse [--model minilm --model smollm2] [--passes 5] [--json OUT]

One row a model and adapter: LoRA in the top third of the layers, and for an encoder the head alone. The same
examples are passed over again and again, with `model.reuse = "memory"` and with `off`, in turn and in one process,
so that a busy machine slows both. A pass is one clipped gradient sum over all examples. CPU seconds of the process
are compared; the first pass with reuse computes the states. Both sides give the same bits, which is checked.

The limit is what the arithmetic allows where a backward pass through a frozen layer costs as much as a forward pass:
of L layers with m trained, L + m passes through a layer become 2 m, which is 2 for the top third of any model. The
head alone has no limit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.models.backbone import Backbone, load_backbone
from fedllm.models.loading.placement import resolve_device
from fedllm.settings.experiment import Settings
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.benchmarks.support import timing, workload

GOALS = {("minilm", "lora"): 2.5, ("smollm2", "lora"): 5.0, ("minilm", "head"): 50.0}
WHOLE_RUN = 2.0
EXAMPLES = {"minilm": 512, "smollm2": 48}


def settings_of(source: workload.ModelSource, backbone: Backbone, form: str) -> Settings:
    """Return the settings of one side: the adapter in the top third of the layers."""
    plain = workload.settings_for(
        source,
        backbone.kind,
        private=True,
        batch_size=64,
        local_steps=1,
        max_tokens=4096,
        prefix_length=0 if backbone.kind == "encoder" else 1,
    ).model_dump(mode="json")
    layers = list(range(backbone.n_layers - backbone.n_layers // 3, backbone.n_layers))
    plain["adapter"] = {"form": form} | ({"rank": 8, "layers": layers} if form == "lora" else {})
    plain["model"] |= {"reuse": "memory", "reuse_gib": 4.0}
    return Settings.model_validate(plain)


def limit(trained: int, layers: int) -> float | None:
    """Return the largest ratio that leaving out the frozen layers can give; None for no limit."""
    return (layers + trained) / (2 * trained) if trained else None


def passed(
    tunable: Tunable, params: dict[str, Tensor], features: Sequence[Feature]
) -> tuple[float, list[Tensor]]:
    """CPU seconds of one clipped gradient sum, and the sum."""
    began = time.process_time()
    scales = dict.fromkeys(params, 1.0)
    found = clipped_gradient_sum(
        tunable, params, features, clip_norm=0.5, scales=scales, max_tokens=4096
    )
    return time.process_time() - began, found.sums


def measure(name: str, form: str, passes: int, examples: int | None) -> dict[str, Any]:
    """Return the figures of one model and adapter."""
    source = workload.model_source(name)
    backbone = load_backbone(source.folder, device=resolve_device("cpu"))
    settings = settings_of(source, backbone, form)
    kept = make_tunable(settings, backbone)
    plain = kept.without_reuse()
    records, origin = workload.load_texts(examples or EXAMPLES.get(name, 256))
    features = kept.task.features(records)
    params = initial_params(kept, settings)
    passed(plain, params, features[:8])  # what is made once
    with_states, without = [], []
    same = True
    for _ in range(passes):
        seconds, expected = passed(plain, params, features)
        without.append(seconds)
        seconds, found = passed(kept, params, features)
        with_states.append(seconds)
        same &= all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    later = timing.paired_ratio(without[1:], with_states[1:])
    trunk = kept.task.trunk
    assert trunk is not None
    return {
        "model": name,
        "note": source.note,
        "form": form,
        "layers": [list(kept.layers), backbone.n_layers],
        "limit": limit(len(kept.layers), backbone.n_layers),
        "examples": len(features),
        "texts": origin,
        "later_passes": later.median,
        "later_passes_range": [later.low, later.high],
        "whole_run": sum(without) / sum(with_states),
        "same_bits": same,
        "kept_mib": trunk.store.used / 2**20,
        "seconds": {"off": without, "memory": with_states},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one row a model and adapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="minilm, smollm2, a folder or a hub id")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--examples", type=int)
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for name in options.model or ["minilm", "smollm2"]:
        forms = ["lora"] if name == "smollm2" else ["lora", "head"]
        rows += [measure(name, form, options.passes, options.examples) for form in forms]
    runs = f"{options.passes} passes"
    header = [
        "model",
        "adapter",
        "later passes",
        "goal",
        "limit",
        runs,
        "goal",
        "same bits",
        "kept",
    ]
    lines = []
    for row in rows:
        goal = GOALS.get((row["model"], row["form"]))
        low, high = row["later_passes_range"]
        lines.append(
            (
                row["model"],
                row["form"],
                f"{row['later_passes']:.1f} x ({low:.1f} to {high:.1f})",
                "" if goal is None else f">= {goal:g}",
                "" if row["limit"] is None else f"{row['limit']:.1f} x",
                f"{row['whole_run']:.1f} x",
                f">= {WHOLE_RUN:g}",
                "yes" if row["same_bits"] else "NO",
                f"{row['kept_mib']:.1f} MiB",
            )
        )
    print(timing.table(header, lines))
    if options.json:
        timing.write_json(options.json, {"rows": rows, **timing.circumstances(torch.device("cpu"))})
    return 0 if all(row["same_bits"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
