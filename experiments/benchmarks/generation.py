"""Generating answers with prompts and gate, against plain transformers on the same questions.

What prompts should cost is what as many more tokens in the cache cost: `plain, K tokens more` has
them in its question.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.common import Workload, arguments, report, seconds, workload
from mops_fl.models.adapted import with_prompts
from mops_fl.wire.records import PRETRAINED, PROMPTS

COLUMNS = {
    "name": "",
    "tokens_per_second": "tokens/s",
    "factor": "time / plain, median",
    "worst": "worst turn",
}

OURS = {
    "fedprompt": {"method": "fedprompt"},
    "mops": {"method": "mops"},
    "mops, gate-top 1": {"method": "mops", "gate_top": 1},
    "mops, gate-mode hidden": {"method": "mops", "gate_mode": "hidden"},
}


def answering(model: Any, questions: torch.Tensor, tokens: int) -> Callable[[], Any]:
    """Generates so many tokens for each question, greedily."""

    @torch.no_grad()
    def run() -> Any:
        mask = torch.ones_like(questions)
        return model.generate(
            questions,
            attention_mask=mask,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )

    return run


def prompted(work: Workload) -> Any:
    """The model with initial prompts and gate, and P¹."""
    (tensors,) = work.clients(1)
    tensors = {**tensors, PRETRAINED: tensors[PROMPTS]}
    return with_prompts(work.twin(), work.config.prompts, work.layer, tensors)


def main() -> None:
    """Run the benchmark."""
    parser = arguments("generation", __doc__)
    parser.add_argument("--tokens", type=int, help="generated for each question")
    parser.add_argument("--together", type=int, default=1, help="questions in a batch")
    parser.add_argument("--turns", type=int)
    options = parser.parse_args()
    tokens = options.tokens or (32 if options.quick else 128)
    turns = options.turns or (3 if options.quick else 7)
    work = workload(options, options.together)
    length = max(len(row.question) for row in work.rows)
    rows = [[0] * (length - len(row.question)) + [*row.question] for row in work.rows]
    asked = torch.tensor(rows, device=work.device)
    more = torch.full((len(asked), work.config.prompts.num_prompts), 5, device=work.device)
    plain = work.twin().eval()
    runs = {
        "plain": answering(plain, asked, tokens),
        f"plain, {more.shape[1]} tokens more": answering(
            plain, torch.cat((more, asked), 1), tokens
        ),
        **{
            name: answering(prompted(work.with_values(**values)), asked, tokens)
            for name, values in OURS.items()
        },
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            each = seconds(run, work.device)
            if turn:  # the first makes what is kept
                taken[name].append(each)
    base = np.array(taken["plain"])
    results = [
        {
            "name": name,
            "tokens_per_second": tokens * len(asked) / float(np.median(each)),
            "factor": float(np.median(np.array(each) / base)),
            "worst": float(np.max(np.array(each) / base)),
        }
        for name, each in taken.items()
    ]
    title = (
        f"{options.model}, {options.dtype}, {len(asked)} questions of {length} tokens together, "
        f"{tokens} tokens of each answer, {turns} turns"
    )
    report(title, COLUMNS, results, options)


if __name__ == "__main__":
    main()
