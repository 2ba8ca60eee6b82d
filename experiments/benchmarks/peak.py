"""The share of the machine's measured matmul peak that a local step achieves.

Floating-point operations of one step with K prompts, T tokens fed and A of them in the answer, on a
LLaMA of L layers, width d, vocabulary V, and W weights in the matrices of a layer, of which M in
its MLP. A product with W weights is 2 W a position, and its gradient for the input 2 W more; the
weights have none.

    suffix     2 × 2 (L - L_int) W (K + T)  -  2 × 2 M (K + T - A)    the last MLP sees answers only
    attention  3 × 4 (L - L_int) d (T (K + T) + K²)     forward once, backward twice; nothing masked
    head       2 × 2 V d A
    prefix     2 L_int W T + 4 L_int d T (K + T)         not with a warm prefix store

Norms, activations, softmax, rotary positions and the optimiser count as nothing, so the share
charges them to us. The peak is the best of square products, measured in turns with the steps.
"""

from statistics import median
from typing import cast

import torch
from transformers import LlamaForCausalLM

from experiments.benchmarks.common import (
    Workload,
    arguments,
    local_steps,
    report,
    seconds,
    workload,
)
from mops_fl.data import Tokenised

COLUMNS = {
    "name": "",
    "tflop": "TFLOP a step",
    "tflops": "TFLOP/s",
    "peak_tflops": "peak TFLOP/s",
    "share": "share of the peak",
}
SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


def step_flop(work: Workload, row: Tokenised, *, warm: bool) -> float:
    """Floating-point operations of one local step on a row, as the module says."""
    config, layer = work.model.config, work.layer
    width, suffix = cast(int, config.hidden_size), cast(int, config.num_hidden_layers) - layer
    weights, mlp = _weights(work.model)
    prompts, answers = work.config.prompts.num_prompts, len(row.answer)
    tokens = len(row.question) + answers - 1
    positions, seen = prompts + tokens, tokens * (prompts + tokens)
    flop = 4.0 * suffix * weights * positions - 4.0 * mlp * (positions - answers)
    flop += 12.0 * suffix * width * (seen + prompts**2)
    flop += 4.0 * cast(int, config.vocab_size) * width * answers
    return flop if warm else flop + 2.0 * layer * weights * tokens + 4.0 * layer * width * seen


def _weights(model: LlamaForCausalLM) -> tuple[int, int]:
    """Weights in all matrices of a layer, and in those of its MLP."""
    layer = model.model.layers[0]
    mlp = sum(weight.numel() for weight in layer.mlp.parameters())
    return mlp + sum(weight.numel() for weight in layer.self_attn.parameters()), mlp


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of the best square product."""
    best = 0.0
    for size in SIZES[device.type]:
        left, right = torch.randn(2, size, size, device=device, dtype=dtype)
        torch.mm(left, right)
        taken = min(seconds(lambda a=left, b=right: torch.mm(a, b), device) for _ in range(3))  # type: ignore[misc]
        best = max(best, 2.0 * size**3 / taken)
    return best


def main() -> None:
    """Run the benchmark."""
    parser = arguments("peak", __doc__)
    parser.add_argument("--turns", type=int)
    options = parser.parse_args()
    turns = options.turns or (2 if options.quick else 5)
    cohort = 10
    work = workload(options, cohort)
    dtype = getattr(torch, options.dtype)
    mixtures = {warm: work.mixture(warm=warm) for warm in (False, True)}
    cases = [(clients, warm) for clients in (1, cohort) for warm in (False, True)]
    speeds: dict[tuple[int, bool], list[float]] = {case: [] for case in cases}
    peaks: dict[tuple[int, bool], list[float]] = {case: [] for case in cases}
    for turn in range(turns + 1):
        for clients, warm in cases:
            at = peak(dtype, work.device)
            taken = local_steps(mixtures[warm], work, work.rows, clients)
            flop = sum(step_flop(work, row, warm=warm) for row in work.rows)
            # the first turn warms up
            if turn:
                speeds[clients, warm].append(flop / taken)
                peaks[clients, warm].append(at)
    results = [
        {
            "name": f"{clients} in one forward, store {'warm' if warm else 'off'}",
            "tflop": sum(step_flop(work, r, warm=warm) for r in work.rows) / cohort / 1e12,
            "tflops": median(speeds[clients, warm]) / 1e12,
            "peak_tflops": median(peaks[clients, warm]) / 1e12,
            "share": median(
                own / at
                for own, at in zip(speeds[clients, warm], peaks[clients, warm], strict=True)
            ),
        }
        for clients, warm in cases
    ]
    title = f"share of the peak, {options.model}, {options.dtype}, {work.tokens:.0f} tokens a row"
    report(title, COLUMNS, results, options, tokens=work.tokens)


if __name__ == "__main__":
    main()
