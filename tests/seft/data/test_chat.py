"""Conversations are rendered by the chat template, and only the assistant's messages are trained on."""

import json
import re
from typing import Any

import pytest

from seft.data.chat import question_start, tokenize_chat
from seft.data.records import Chat, Message, Parser, Role
from seft.errors import ConfigError
from tests.tiny import tiny_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<s>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + '</s>' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN3 = (  # the part of its template that renders answers: only the last one has empty thoughts
    "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.multi_step_tool and message.role == 'user' and message.content is string"
    " and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}"
    "{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role != 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}"
    "{%- else %}{%- set reasoning_content = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}"
    "{{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n'"
    " + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LAST_ENDS = (  # only the last message ends the text
    "{% for message in messages %}{{ message['role'] + ':\n' + message['content'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ 'A:\n' }}{%- generation -%}{{ message['content'] }}{%- endgeneration %}{{ '\n' }}"
    "{% else %}{{ 'Q: ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
)

CONVERSATION = Chat(
    (
        Message(Role.USER, "What is 2 + 2?"),
        Message(Role.ASSISTANT, "It is four, or 4.\n"),
        Message(Role.USER, "assistant\n你好, and 3?"),
        Message(Role.ASSISTANT, "Then it is 5. 🙂"),
    )
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "</s>", "<s>"]


def tokenizer_with(template: str | None, special: list[str] = SPECIAL) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


def trained_on(tokenizer: Any, chat: Chat = CONVERSATION) -> list[str]:
    """Return the text of each run of tokens that is trained on."""
    tokenized = tokenize_chat(chat, tokenizer)
    runs: list[list[int]] = [[]]
    for token, trained in zip(tokenized.tokens, tokenized.trained, strict=True):
        if trained:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("special", [SPECIAL, []], ids=["own tokens", "plain text"])
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["It is four, or 4.\n<|im_end|>\n", "Then it is 5. 🙂<|im_end|>\n"]),
        (LLAMA3, ["It is four, or 4.<|eot_id|>", "Then it is 5. 🙂<|eot_id|>"]),
        (MISTRAL, [" It is four, or 4.\n</s>", " Then it is 5. 🙂</s>"]),
        (GEMMA, ["It is four, or 4.<end_of_turn>\n", "Then it is 5. 🙂<end_of_turn>\n"]),
        (MARKED, ["It is four, or 4.\n", "Then it is 5. 🙂"]),
    ],
    ids=["chatml", "llama 3", "mistral", "gemma", "marked"],
)
def test_only_the_assistants_messages_are_trained_on(template: str, expected: list[str], special: list[str]) -> None:
    runs = trained_on(tokenizer_with(template, special))
    if special:
        assert runs == expected
    else:
        # Without special tokens, a token may span the end of a message and the text after it.
        assert len(runs) == len(expected)
        for run, message in zip(runs, expected, strict=True):
            assert run.strip()[:-1] in message
            assert message.strip()[:-4] in run


def test_the_tokens_are_those_of_the_tokenizers_own_chat_template() -> None:
    messages = [{"role": message.role.value, "content": message.content} for message in CONVERSATION.messages]
    for template in (CHATML, LLAMA3, MISTRAL, GEMMA, MARKED):
        tokenizer = tokenizer_with(template)
        expected = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert tokenize_chat(CONVERSATION, tokenizer).tokens == expected


def test_an_end_mark_that_is_rendered_once_is_trained_on_once() -> None:
    assert trained_on(tokenizer_with(LAST_ENDS)) == ["It is four, or 4.\n\n", "Then it is 5. 🙂\n</s>"]


def test_a_template_that_adds_thoughts_to_the_last_answer_only_is_supported() -> None:
    tokenizer = tokenizer_with(QWEN3)
    last = "<think>\n\n</think>\n\nThen it is 5. 🙂<|im_end|>\n"
    assert trained_on(tokenizer) == ["It is four, or 4.\n<|im_end|>\n", last]
    for content in ("think", "end", "n", ""):
        chat = Chat((CONVERSATION.messages[0], Message(Role.ASSISTANT, content), *CONVERSATION.messages[2:]))
        assert trained_on(tokenizer, chat) == [f"{content}<|im_end|>\n", last]


def test_words_of_a_later_message_are_not_taken_for_the_assistants() -> None:
    forgetful = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'user' or loop.last %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    words = zip((Role.USER, Role.ASSISTANT) * 2, ("1?", "yes", "yes?", "no"), strict=True)
    with pytest.raises(ConfigError, match="content of assistant message 1 unchanged"):
        tokenize_chat(Chat(tuple(Message(role, content) for role, content in words)), tokenizer_with(forgetful))


def test_tool_and_system_messages_are_read_but_not_trained_on() -> None:
    chat = Chat(
        (
            Message(Role.SYSTEM, "Be short."),
            Message(Role.USER, "Time?"),
            Message(Role.ASSISTANT, "call clock"),
            Message(Role.TOOL, "12:00"),
            Message(Role.ASSISTANT, "Noon."),
        )
    )
    tokenizer = tokenizer_with(CHATML)
    assert trained_on(tokenizer, chat) == ["call clock<|im_end|>\n", "Noon.<|im_end|>\n"]
    assert "Be short." in tokenizer.decode(tokenize_chat(chat, tokenizer).tokens)


def test_a_template_that_uses_the_date_always_gets_the_same_one() -> None:
    dated = "{%- if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML
    tokenizer = tokenizer_with(dated)
    text = tokenizer.decode(tokenize_chat(CONVERSATION, tokenizer).tokens)
    assert text.startswith("26 Jul 2024<|im_start|>user")


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        (None, "must have a chat template"),
        ("{{ raise_exception('No tools here') }}", "No tools here"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% for", "must render every conversation"),
        ("{{ messages | length }}", "must render"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "must render the content of assistant message 1"),
        (CHATML.replace("message['content']", "message['content'] | upper"), "must render the content of assistant"),
        ("{{ messages[-1]['content'] }}" + CHATML, "must render the beginning"),
        ("{{ 1 / 0 }}", "division by zero"),
        (MARKED.replace("== 'assistant'", "== 'nobody'"), "must render the assistant's messages"),
    ],
)
def test_an_unsuitable_template_is_rejected(template: str | None, rule: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(rule)):
        tokenize_chat(CONVERSATION, tokenizer_with(template))


@pytest.mark.parametrize(
    ("template", "seen"),
    [
        ("{{ raise_exception('No tools here') }}", "it failed for the roles 'user, assistant'"),
        ("{{ messages[-1]['content'] }}" + CHATML, "it rendered"),
    ],
    ids=["failed", "rendered"],
)
def test_a_conversation_that_a_template_cannot_render_is_named_by_file_and_line(template: str, seen: str) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    parsed = Parser("chats.jsonl")(17, json.dumps({"messages": chat}).encode())
    assert isinstance(parsed, Chat)
    with pytest.raises(ConfigError, match=f"for line 17 of chats.jsonl {seen}"):
        tokenize_chat(parsed, tokenizer_with(template))


def test_several_templates_without_a_default_are_rejected_and_start_no_question() -> None:
    tokenizer = tokenizer_with(CHATML)
    tokenizer.chat_template = {"tools": CHATML, "rag": CHATML}
    with pytest.raises(ConfigError, match="must have one that is the default; it is 'tools, rag'"):
        tokenize_chat(CONVERSATION, tokenizer)
    assert question_start(tokenizer) is None
    assert question_start(tokenizer_with("{{ 1 / 0 }}")) is None


@pytest.mark.parametrize("rule", ["", "Answer every QUESTION, with 0 or 1 words.\n"])
def test_a_question_starts_after_all_text_that_the_template_writes_before_it(rule: str) -> None:
    template = "{{ rule }}{{ '<user>' + messages[0]['content'] + '<end>' + rule }}".replace("rule", repr(rule))
    assert question_start(tokenizer_with(template)) == f"{rule}<user>"
    assert question_start(tokenizer_with(rule or "no question")) is None
