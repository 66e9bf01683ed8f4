"""Writes a tiny llama with random weights: ``python make_model.py FILE``. Runs in an environment that has ``gguf``.

It says English words without sense. Some things in it are not left to chance, so that tests can rely on them:

- An answer ends by itself after some dozens of words when words are sampled; at temperature 0 it goes on.
- All it says is words and, since the strings of a grammar must end, quotation marks. Other single bytes come only where
  a grammar wants them, so its text is valid UTF-8.
- Where the chat template ends in ``<|tools|>``, as it does when there are tools and the user spoke last, it begins a
  tool call. A grammar of the server makes that a valid one.
"""

from __future__ import annotations

import sys

import gguf
import numpy as np

SEED = 7
WIDTH, HEADS, HIDDEN, LAYERS, CONTEXT = 64, 4, 128, 2, 1 << 17

WORDS = """a all and as at be but by can do for from go have he her his how if in is it know like light may my no not
note of on one or our out river say see she so some stone stream that the then they this time to up use voice we what
when who will with you your café ☃ 𝄞""".split()  # noqa: SIM905
END, START, TOOLS, CALL = SPECIAL = ["<|end|>", "<|start|>", "<|tools|>", "<tool_call>"]

TEMPLATE = """\
{%- if tools %}<|start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|end|>
{% endif %}
{%- for message in messages %}<|start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}{% set called = call.function -%}
<tool_call>{"name": "{{ called.name }}", "arguments": {{ called.arguments | tojson }}}</tool_call>
{%- endfor %}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant
{% if tools and messages[-1].role == 'user' %}<|tools|>{% endif %}{% endif %}"""


def main(path: str) -> None:
    """Write the model."""
    letters = byte_letters()
    tokens = letters + ["".join(letters[byte] for byte in f" {word}".encode()) for word in WORDS] + SPECIAL
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL)) + [gguf.TokenType.CONTROL] * len(SPECIAL)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A tiny llama with random weights")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{letters[ord(' ')]} a"])  # there must be one
    writer.add_bos_token_id(tokens.index(START))
    writer.add_eos_token_id(tokens.index(END))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in weights(tokens).items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a vocabulary of GPT-2's kind."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def weights(tokens: list[str]) -> dict[str, np.ndarray]:
    """All tensors. Dimension 0 is the same for all tokens, 1 marks ``<|tools|>``; no layer writes to them."""
    random = np.random.default_rng(SEED)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    def into_stream(columns: int) -> np.ndarray:
        made = matrix(WIDTH, columns)
        made[:2] = 0
        return made

    embedding = matrix(len(tokens), WIDTH) * WIDTH**0.5
    embedding[:, 0], embedding[:, 1] = 4, 0
    embedding[tokens.index(TOOLS), 1] = 20
    output = matrix(len(tokens), WIDTH)
    output[:, 0], output[:, 1] = likely(tokens), 0
    output[[tokens.index(END), ord('"')], 2:] = 0
    output[tokens.index(CALL), 1] = 20
    made = {"token_embd": embedding, "output": output, "output_norm": np.ones(WIDTH, np.float32)}
    for layer in range(LAYERS):
        made |= {
            f"blk.{layer}.attn_norm": np.ones(WIDTH, np.float32),
            **{f"blk.{layer}.attn_{name}": matrix(WIDTH, WIDTH) for name in "qkv"},
            f"blk.{layer}.attn_output": into_stream(WIDTH),
            f"blk.{layer}.ffn_norm": np.ones(WIDTH, np.float32),
            f"blk.{layer}.ffn_gate": matrix(HIDDEN, WIDTH),
            f"blk.{layer}.ffn_up": matrix(HIDDEN, WIDTH),
            f"blk.{layer}.ffn_down": into_stream(HIDDEN),
        }
    return made


def likely(tokens: list[str]) -> np.ndarray:
    """How likely each token is anywhere, about a third of its logit: 0 for a word."""
    made = np.zeros(len(tokens), np.float32)
    made[:256] = -12
    made[0x20:0x7F] = -4
    made[ord('"')] = 0.5  # so that a grammar's strings end soon
    made[256 + len(WORDS) :] = -12
    made[tokens.index(END)] = 0.3
    return made


if __name__ == "__main__":
    main(sys.argv[1])
