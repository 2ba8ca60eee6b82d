"""The chat template of what was trained: messages become a question as rows of chats did.

It says in jinja what `mops_fl.data.chat` and `mops_fl.data.template` say, so that programs which
know nothing of this project (`apply_chat_template`, a `pipeline`) ask as training asked.
"""

import json
from typing import TYPE_CHECKING

from mops_fl.data.chat import SPEAKERS
from mops_fl.data.examples import Example
from mops_fl.data.template import TAIL, head
from mops_fl.data.tokens import added_before, question_ids
from mops_fl.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE = (
    """
{%- set speakers = SPEAKERS -%}
{%- set chat = namespace(said=[], last=none, system=[], others=[]) -%}
{%- for message in messages -%}
    {%- set name = message['role'] | trim | lower -%}
    {%- set parts = namespace(texts=[]) -%}
    {%- if message['content'] is string -%}
        {%- set parts.texts = [message['content']] -%}
    {%- elif message['content'] -%}
        {%- for part in message['content'] -%}
            {%- set text = part if part is string else part['text'] -%}
            {%- set parts.texts = parts.texts + [text | default('', true) | trim] -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set speaker = speakers.get(name, name | capitalize) -%}
    {%- set chat.said = chat.said + [(speaker, parts.texts | join('\\n') | trim)] -%}
    {%- if speaker == 'Assistant' -%}
        {%- set chat.last = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- if not add_generation_prompt and chat.last is none -%}
    {{- raise_exception('the messages have no answer: set add_generation_prompt') -}}
{%- endif -%}
{%- for speaker, text in (chat.said if add_generation_prompt else chat.said[:chat.last]) -%}
    {%- if text and speaker == 'System' -%}
        {%- set chat.system = chat.system + [text] -%}
    {%- elif text -%}
        {%- set chat.others = chat.others + [(speaker, text)] -%}
    {%- endif -%}
{%- endfor -%}
{%- if not chat.others -%}
    {{- raise_exception('the messages have no question') -}}
{%- endif -%}
{%- set chat.texts = chat.system -%}
{%- for speaker, text in chat.others -%}
    {%- set named = text if chat.others | length == 1 else speaker + ': ' + text -%}
    {%- set chat.texts = chat.texts + [named] -%}
{%- endfor -%}
{{- HEAD + chat.texts | join('\\n\\n') + TAIL -}}
{%- if not add_generation_prompt -%}
    {{- chat.said[chat.last][1] + eos_token -}}
{%- endif -%}
""".strip()
    .replace("SPEAKERS", json.dumps(SPEAKERS))
    .replace("HEAD", json.dumps(head(Example("", "", "", ""))))
    .replace("TAIL", json.dumps(TAIL))
)
"""Of a tokenizer that puts nothing before a text.

With `add_generation_prompt` all messages are the question. Without it the assistant's last one is
the answer to those before it, and ends the text, as in training.
"""

_PROBE = "Which of these 2 numbers is larger?"


def put_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give a tokenizer the chat template, behind what the tokenizer puts before a text.

    Raises:
        ModelError: its ids of a text are others behind a special token.
    """
    # behind a special token, SentencePiece may leave out the space that it begins a text with
    start = "".join(tokenizer.convert_ids_to_tokens(added_before(tokenizer)))
    for before in (start, f"{start} "):
        shown = f"{{{{- {json.dumps(before, ensure_ascii=False)} -}}}}" if before.strip() else ""
        tokenizer.chat_template = shown + CHAT_TEMPLATE
        asked = [{"role": "user", "content": _PROBE}]
        made = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        if made == question_ids(Example(_PROBE, "", "", ""), tokenizer):
            return
    raise ModelError(
        f"the model's tokenizer gives other ids to a text behind {start!r}: no chat template asks "
        "as training did"
    )
