"""A chat as a question and its answer: the last turn of the assistant, and what precedes it."""

from collections.abc import Mapping

from mops_fl.data.examples import UnusableError, text_of

SPEAKERS = {
    "system": "System",
    "developer": "System",
    "user": "User",
    "human": "User",
    "assistant": "Assistant",
    "gpt": "Assistant",
    "model": "Assistant",
    "bot": "Assistant",
}
"""A turn's role → its name in a question."""


def question_and_answer(turns: object) -> tuple[str, str]:
    """The question and the answer of a list of `role, content` (or `from, value`) turns.

    Raises:
        UnusableError: these are not turns with texts, or none is the assistant's.
    """
    said = _said(turns)
    last = max((i for i, (speaker, _) in enumerate(said) if speaker == "Assistant"), default=None)
    if last is None:
        raise UnusableError("chat has no turn of the assistant")
    return _question(said[:last]), said[last][1]


def question_of(turns: object) -> str:
    """The question of turns that are all to be answered, whoever spoke last.

    Raises:
        UnusableError: these are not turns with texts, or there is nothing to be answered.
    """
    return _question(_said(turns))


def _said(turns: object) -> list[tuple[str, str]]:
    """Speaker and text of each turn."""
    if not isinstance(turns, list):
        raise UnusableError("chat is not a list of turns")
    return [_turn(turn) for turn in turns]


def _question(said: list[tuple[str, str]]) -> str:
    """One turn is the question; of several, each has its speaker's name before it.

    The text of the system comes first and has none.
    """
    before = [(speaker, text) for speaker, text in said if text]
    system = [text for speaker, text in before if speaker == "System"]
    others = [(speaker, text) for speaker, text in before if speaker != "System"]
    if not others:
        raise UnusableError("chat has nothing before the assistant's answer")
    named = [f"{speaker}: {text}" for speaker, text in others]
    return "\n\n".join([*system, *([others[0][1]] if len(others) == 1 else named)])


def _turn(turn: object) -> tuple[str, str]:
    """Speaker and text of a turn."""
    if not isinstance(turn, Mapping):
        raise UnusableError("chat is not a list of turns")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str):
        raise UnusableError("chat has a turn without a role")
    name = role.strip().lower()
    return SPEAKERS.get(name, name.capitalize()), text_of("turn of a chat", _joined(content))


def _joined(content: object) -> object:
    """The texts of a content that comes in parts, ``[{"type": "text", "text": …}, …]``."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "\n".join(text_of("turn of a chat", text) for text in texts)
