"""The one prompt template, Alpaca's (Taori et al. 2023).

A question is `head` followed by `TAIL`; they are kept apart because an over-long head loses its
end, whereas the tail always stays. The input block is left out when there is no context.
"""

from mops_fl.data.examples import Example

TAIL = "\n\n### Response:\n"


def head(example: Example) -> str:
    """Everything up to and including the context."""
    text = f"### Instruction:\n{example.instruction}"
    return f"{text}\n\n### Input:\n{example.context}" if example.context else text
