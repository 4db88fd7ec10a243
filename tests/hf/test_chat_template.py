import json

import pytest

from fm.errors import UserError
from fm.hf.chat_template import read_chat_template, render_chat
from fm.hf.tokenizer import HFTokenizer
from tests.hf import helpers_gguf as made

CHATML = """{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|start|>' + message['role'] + '\\n' + message.content | trim }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
{%- endif %}
"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (CHATML, "<|start|>user\nHi & bye<|end|>\n<|start|>assistant\n"),
        (
            "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]",
            "<s>[INST]  Hi & bye [/INST]",
        ),
        ("{{ messages | tojson }}", '[{"role": "user", "content": " Hi & bye"}]'),
        ("{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x }}", "a1"),
        ("{{ tools is none }} {{ date is defined }} {{ strftime_now('%%') }}", "True False %"),
        ("{% if tools %}{{ tools }}{% endif %}\nx", "x"),
    ],
)
def test_a_message_is_written_as_the_template_says(template, wanted):
    assert render_chat(template, " Hi & bye", TOKENS) == wanted


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "fails: roles must alternate"),
        ("{% if %}", "the chat template fails: "),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages[3].content }}", "has no"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_one_line(template, reason):
    with pytest.raises(UserError, match=reason):
        render_chat(template, "Hi", TOKENS)


NAMED = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"tokenizer_config.json": {}}, None),
        ({"tokenizer_config.json": {"chat_template": "a"}}, "a"),
        ({"tokenizer_config.json": {"chat_template": NAMED}}, "d"),
        ({"tokenizer_config.json": {"chat_template": {"default": "d"}}}, "d"),
        ({"tokenizer_config.json": {}, "chat_template.json": {"chat_template": "j"}}, "j"),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "b"}, "b"),
    ],
)
def test_where_a_folder_has_its_template(tmp_path, files, wanted):
    for name, content in files.items():
        text = content if name.endswith(".jinja") else json.dumps(content)
        (tmp_path / name).write_text(text)
    assert read_chat_template(tmp_path) == wanted


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (3, "must be a text"),
        (["a"], "must be a text"),
        (NAMED[:1], "has tool_use, but none named default"),
        ({"default": 3}, "must be a text"),
    ],
)
def test_a_template_that_is_no_text_is_one_line(tmp_path, template, reason):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: chat_template {reason}"):
        read_chat_template(tmp_path)


def test_a_chat_reaches_the_model_as_its_special_tokens():
    read = HFTokenizer(made.byte_bpe(), bos=1, eos=0, chat_template=CHATML)
    ids = read.encode_chat("the cat")
    assert ids.tolist().count(1) == 2 and ids.tolist().count(0) == 1
    assert read.decode(ids) == "user\nthe cat\nassistant\n"
    with pytest.raises(UserError, match="the model has no chat template"):
        HFTokenizer(made.byte_bpe()).encode_chat("the cat")
