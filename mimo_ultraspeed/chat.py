"""Chat messages to prompt text, so that what a user wrote can never be taken for what the template wrote.

A prompt is text with control tokens (`<|im_start|>`, `<|im_end|>`, `</tool_response>`) between the parts. Only those that the
template writes count. Every other string that enters the prompt (contents, reasoning, tool names, arguments and descriptions,
keyword arguments) is first put through a `Guard`: each character at which a control token of this vocabulary can begin or end, in
MiMo's case `<` and `>`, is replaced by a private-use character that is drawn anew for every render and occurs in none of the
inputs. Whatever a template then does to the strings, trim, slice, split, join, quote as JSON, they cannot supply the ends of a
control token. The rendered text is split at the control tokens it contains, all of them the template's; only then are the
original characters put back, and the parts between are encoded with control tokens switched off. The price: a template that
searches a user's text for a control token does not find it. In an assistant's content the marks `<think>`, `</think>`,
`<tool_call>`, `</tool_call>` stay, since templates look for them and the model itself wrote them; roles are not guarded but must
be known ones.

Templates that ship with this file, or whose text is known by its hash, are rendered in this process; all others in
`template_process`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import TemplateError

__all__ = ["MIMO_TEMPLATE", "ROLES", "Guard", "Message", "check_messages", "check_tools", "plain", "render_chat"]

Message = Mapping[str, Any]
"""One turn: `role` (one of `ROLES`), `content` (text, or a list of {"type": "text", "text": ...} parts) and what the template
knows."""

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_DEPTH = 64
MAX_VALUES = 200_000
MAX_BYTES = 8 << 20
_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # plane 15
MARKS_OF_THE_MODEL = ("<think>", "</think>", "<tool_call>", "</tool_call>")

MIMO_TEMPLATE = """\
{%- macro describe(tool) -%}
{%- set function = tool.function or tool -%}
{{- '<function>\\n<name>' ~ function.name ~ '</name>\\n' }}
{%- if function.description %}{{- '<description>' ~ function.description ~ '</description>\\n' }}{% endif %}
{{- '<parameters>' ~ ((function.parameters or {}) | tojson) ~ '</parameters>\\n</function>\\n' }}
{%- endmacro -%}
{%- macro call(tool_call) -%}
{%- set function = tool_call.function or tool_call -%}
{{- '<tool_call>\\n<function=' ~ function.name ~ '>\\n' }}
{%- for key, value in (function.arguments or {}).items() %}
{{- '<parameter=' ~ key ~ '>' ~ (value if value is string else value | tojson) ~ '</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}
{%- endmacro -%}
{%- set keep_all = keep_all_reasoning is not defined or keep_all_reasoning -%}
{%- set place = namespace(last_user=-1) -%}
{%- for message in messages %}{% if message.role == 'user' %}{% set place.last_user = loop.index0 %}{% endif %}{% endfor -%}
{%- set own_system = messages[0].role in ('system', 'developer') -%}
{{- '<|im_start|>system\\n' }}
{{- messages[0].content if own_system else 'You are MiMo, a helpful AI assistant engineered by Xiaomi.' }}
{%- if tools %}
{{- '\\n\\n# Tools\\n\\nThese functions can be called:\\n\\n<tools>\\n' }}
{%- for tool in tools %}{{- describe(tool) }}{% endfor %}
{{- '</tools>\\n\\nTo call one, answer with:\\n\\n' }}
{{- '<tool_call>\\n<function=NAME>\\n<parameter=KEY>VALUE</parameter>\\n</function>\\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>' }}
{%- set turns = messages[1:] if own_system else messages %}
{%- for message in turns %}
{%- if message.role == 'tool' %}
{%- if loop.previtem is not defined or loop.previtem.role != 'tool' %}{{- '<|im_start|>tool\\n' }}{% endif %}
{{- '<tool_response>\\n' ~ message.content ~ '\\n</tool_response>\\n' }}
{%- if loop.nextitem is not defined or loop.nextitem.role != 'tool' %}{{- '<|im_end|>' }}{% endif %}
{%- elif message.role == 'assistant' %}
{%- set content = message.content.split('</think>')[-1] %}
{%- set inner = message.content.split('</think>')[0].split('<think>')[-1] if '</think>' in message.content else '' %}
{%- set reasoning = (message.reasoning_content or inner)
    if keep_all or loop.index0 + (1 if own_system else 0) > place.last_user else '' %}
{{- '<|im_start|>assistant\\n<think>' ~ reasoning ~ '</think>' ~ content }}
{%- for tool_call in message.tool_calls or [] %}{{- call(tool_call) }}{% endfor %}
{{- '<|im_end|>' }}
{%- else %}
{{- '<|im_start|>' ~ ('system' if message.role == 'developer' else message.role) ~ '\\n' ~ message.content ~ '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{% endif %}
{%- endif %}
"""
"""MiMo's form of ChatML, for a checkpoint that has the tokens but no template. Nothing, not even a line end, follows `<|im_end|>`.

Thinking is on unless `enable_thinking` is false. Reasoning of earlier turns (`reasoning_content`, or `<think>` in the content) is
kept unless `keep_all_reasoning` is false; then only the turns after the last user message keep theirs.
"""

_TRUSTED = {
    hashlib.sha256(MIMO_TEMPLATE.encode()).hexdigest(),
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",  # SmolLM2-Instruct, as published
}


class Guard:
    """Hides and shows again, in one render, the characters with which `controls` begin and end. See the module's text."""

    def __init__(self, controls: Iterable[str], inputs: Iterable[str]) -> None:
        """`inputs`: every text that takes part in the render, the template among them; no placeholder occurs in them."""
        ends: set[str] = set()
        whole: list[str] = []
        for control in controls:
            usable = {char for char in (control[0], control[-1]) if char > " " and not char.isalnum() and char not in "\"'\\"}
            ends |= usable
            if not usable:
                whole.append(control)
        hidden = sorted(ends | {control[0] for control in whole})
        # A control token without a mark at either end, say `EOS`, is broken up only where it occurs.
        rules = [re.escape(char) for char in sorted(ends)]
        rules += [f"{re.escape(control[0])}(?={re.escape(control[1:])})" for control in sorted(whole)]
        taken = set().union(*inputs)
        drawn = random.Random(os.urandom(16)).sample(_PRIVATE_USE, 64 + 2 * len(hidden))
        free = [char for char in map(chr, drawn) if char not in taken]
        if len(free) < len(hidden):
            raise TemplateError("chat template: the messages use too many different private-use characters")
        self._placeholder = dict(zip(hidden, free, strict=False))
        self._rules = re.compile("|".join(rules)) if rules else None
        self._rules_of_the_model = re.compile("|".join([*map(re.escape, MARKS_OF_THE_MODEL), *rules])) if rules else None
        self._original = str.maketrans({placeholder: char for char, placeholder in self._placeholder.items()})

    def hide(self, text: str, keep_marks: bool = False) -> str:
        """The text without the ends of control tokens; `keep_marks` leaves `MARKS_OF_THE_MODEL` in it."""
        rules = self._rules_of_the_model if keep_marks else self._rules
        return text if rules is None else rules.sub(lambda found: self._placeholder.get(found.group(), found.group()), text)

    def show(self, text: str) -> str:
        """The text as it was before `hide`."""
        return text.translate(self._original)

    def hide_all(self, value: Any) -> Any:
        """`hide` for every string and every key in a plain value."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self.hide_all(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide_all(item) for key, item in value.items()}
        return value

    def hide_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """`hide` for all of a checked message but its role; the model's own marks stay in an assistant's content."""
        role, content = message["role"], message["content"]
        rest = {key: item for key, item in message.items() if key not in ("role", "content")}
        return {"role": role, "content": self.hide(content, keep_marks=role == "assistant"), **self.hide_all(rest)}


class _Rebuild:
    """Copies a value into plain dict, list, str, int, float, bool and None, within limits on depth, count and bytes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values = 0
        self._bytes = 0

    def __call__(self, value: Any, where: str, depth: int = 0) -> Any:
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            raise TemplateError(
                f"{where}: nested deeper than {MAX_DEPTH} levels, or {self._name} hold more than {MAX_VALUES} values"
            )
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value, where)
        if isinstance(value, int) and abs(value) < 1 << 63:
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if isinstance(value, Mapping):
            return {
                self._text(self._key(key, where), where): self(item, f"{where}[{str(key)[:80]!r}]", depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
        raise TemplateError(f"{where}: expected text, a finite number, a list or a dict, found {type(value).__name__}")

    def _key(self, key: Any, where: str) -> str:
        if not isinstance(key, str):
            raise TemplateError(f"{where}: expected keys of type str, found {type(key).__name__}")
        return key

    def _text(self, text: str, where: str) -> str:
        try:
            self._bytes += len(text.encode())
        except UnicodeEncodeError as error:
            raise TemplateError(f"{where}: not a valid Unicode text at character {error.start}") from error
        if self._bytes > MAX_BYTES:
            raise TemplateError(f"{where}: {self._name} hold more than {MAX_BYTES} bytes of text")
        return str(text)


def plain(value: Any, where: str) -> Any:
    """`value` rebuilt from plain JSON types. TemplateError names the place of anything else, or of too much of it."""
    return _Rebuild(where)(value, where)


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as plain dicts with a known `role` and a `content` of type str. TemplateError names the first wrong one.

    A content given as parts is joined; None is accepted beside `tool_calls`. Arguments of a tool call given as JSON text are
    parsed.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TemplateError(f"messages: expected a list of dicts, found {type(messages).__name__}")
    if not messages:
        raise TemplateError("messages: expected at least one message, found an empty list")
    rebuild = _Rebuild("messages")
    return [_message(message, f"messages[{at}]", rebuild) for at, message in enumerate(messages)]


def _message(message: Any, where: str, rebuild: _Rebuild) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TemplateError(f"{where}: expected a dict with 'role' and 'content', found {type(message).__name__}")
    for key in message:
        if not isinstance(key, str):
            raise TemplateError(f"{where}: expected keys of type str, found {type(key).__name__}")
    checked: dict[str, Any] = rebuild(message, where)
    role = checked.get("role")
    if role not in ROLES:
        raise TemplateError(f"{where}: unknown role {str(role)[:80]!r}, expected one of {', '.join(ROLES)}")
    calls = checked.get("tool_calls")
    if calls is not None:
        checked["tool_calls"] = _tool_calls(calls, where)
    for name in ("reasoning_content", "name"):
        if not isinstance(checked.get(name, ""), str):
            if checked[name] is not None:
                raise TemplateError(f"{where}: {name}: expected text, found {type(checked[name]).__name__}")
            del checked[name]
    if "content" not in checked and not calls:
        raise TemplateError(f"{where}: 'content' is missing")
    checked["content"] = "" if checked.get("content") is None and calls else _content(checked["content"], where)
    return checked


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TemplateError(f"{where}: content: expected text or a list of text parts, found {type(content).__name__}")
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise TemplateError(f"{where}: content[{at}]: only parts of type 'text' are supported, found {str(kind)[:80]!r}")
    return "".join(part["text"] for part in content)


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise TemplateError(f"{where}: tool_calls: expected a list of dicts")
    for at, call in enumerate(calls):
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise TemplateError(f"{where}: tool_calls[{at}]: expected a function with a 'name'")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            function["arguments"] = arguments = _parsed_arguments(arguments, f"{where}: tool_calls[{at}]")
        if not isinstance(arguments, dict):
            raise TemplateError(
                f"{where}: tool_calls[{at}]: arguments: expected a dict or JSON text, found {type(arguments).__name__}"
            )
    return calls


def _parsed_arguments(text: str, where: str) -> Any:
    try:
        return plain(json.loads(text or "{}"), f"{where}: arguments")
    except (ValueError, RecursionError) as error:
        if isinstance(error, TemplateError):
            raise
        raise TemplateError(f"{where}: arguments: not readable as JSON: {error}") from error


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The tools as plain dicts, each {"type": "function", "function": {...}} or the inner dict alone; None for none."""
    if not tools:
        return None
    if not isinstance(tools, (list, tuple)):
        raise TemplateError(f"tools: expected a list of dicts, found {type(tools).__name__}")
    checked: list[dict[str, Any]] = plain(tools, "tools")
    for at, tool in enumerate(checked):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise TemplateError(f"tools[{at}]: expected a dict that describes a function with a 'name'")
    return checked


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)


def render_chat(
    template: str,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    controls: Iterable[str],
    settings: Mapping[str, Any],
    tokens: Mapping[str, str | None],
) -> tuple[str, Guard]:
    """The rendered text, in which every control token is the template's, and the guard whose `show` restores the users' words.

    `settings` are keyword arguments of the caller and guarded, `tokens` (bos_token and such) are the checkpoint's and not.
    TemplateError if the messages are wrong, or the template is, or it took too much time, memory or text.
    """
    checked, checked_tools = check_messages(messages), check_tools(tools)
    rest = plain(dict(settings), "settings")
    guard = Guard(controls, [template, *_strings([checked, checked_tools, rest, dict(tokens)])])
    variables = {
        **tokens,
        **guard.hide_all(rest),
        "messages": [guard.hide_message(message) for message in checked],
        "tools": guard.hide_all(checked_tools),
    }
    if hashlib.sha256(template.encode()).hexdigest() not in _TRUSTED:
        from .template_process import shared_process  # a checkpoint whose template is known never needs the helper

        return shared_process().render(template, variables), guard
    from .template_worker import render  # imports jinja2, which `import mimo_ultraspeed` should not

    try:
        return render(template, variables), guard
    except ValueError as error:
        raise TemplateError(f"chat template: {error}") from error
