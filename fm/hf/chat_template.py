"""Chat templates: how a model's conversations are written, as a Jinja template of its files."""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fm.errors import UserError
from fm.files import read_bytes, read_user_json

CHAT_TEMPLATE_FILE = "chat_template.jinja"
# A folder has it in one of these; the JSON files under the key `chat_template`.
_JSON_FILES = ("tokenizer_config.json", "chat_template.json")


def read_chat_template(folder: pathlib.Path) -> str | None:
    """Returns the chat template of a model's folder; None without one.

    chat_template.jinja comes before tokenizer_config.json, and of several named templates the one
    named "default" is taken, as in `transformers`.

    Raises:
      UserError: it cannot be read, is no text, or has several templates of which none is "default".
    """
    path = folder / CHAT_TEMPLATE_FILE
    if path.exists():
        try:
            return read_bytes(path).decode("utf-8")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8") from error
    for name in _JSON_FILES:
        path = folder / name
        found = read_user_json(path) if path.exists() else None
        template = found.get("chat_template") if isinstance(found, Mapping) else None
        if isinstance(template, list) and all(isinstance(each, Mapping) for each in template):
            template = {each.get("name"): each.get("template") for each in template}
        if isinstance(template, Mapping):
            names = ", ".join(map(str, template))
            template = template.get("default")
            if template is None:
                raise UserError(f"{path}: chat_template has {names}, but none named default")
        if template is not None:
            if not isinstance(template, str):
                raise UserError(f"{path}: chat_template must be a text, or a list of named texts")
            return template
    return None


def render_chat(template: str, message: str, special_tokens: Mapping[str, str]) -> str:
    """Returns a user's message as a template writes it, up to where the reply begins.

    The template runs in Jinja's sandbox, with the functions that `transformers` gives it: it
    reaches no file, no attribute of Python's own and changes nothing.

    Args:
      template: the template.
      message: what the user says.
      special_tokens: texts of the model's special tokens, such as `bos_token`.

    Raises:
      UserError: the template is malformed, forbidden something, or refuses the message.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    try:
        return environment.from_string(template).render(
            messages=[{"role": "user", "content": message}],
            add_generation_prompt=True,
            tools=None,
            documents=None,
            **special_tokens,
        )
    except Exception as error:  # A template may raise anything.
        raise UserError(f"the chat template fails: {error or type(error).__name__}") from error


class _Generation(Extension):
    """The tag `{% generation %}`, which marks replies for training and writes its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes characters of HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
