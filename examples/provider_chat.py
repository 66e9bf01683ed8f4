"""Ask any model and print its answer as it comes: thinking, text, tool calls, cost.

``python examples/provider_chat.py chat http://localhost:11434/v1 llama3.2 "What is a canon?"`` asks a local server
(Ollama, llama.cpp, vLLM). The first word is the API: ``responses``, ``chat`` or ``anthropic``; the key is taken from
``API_KEY``.
"""

import os
import sys

from legato.provider import AnthropicProvider, ChatCompletionsProvider, ProviderError, ResponsesProvider

PROVIDERS = {"responses": ResponsesProvider, "chat": ChatCompletionsProvider, "anthropic": AnthropicProvider}


def main(api, base_url, model, *words):
    question = " ".join(words) or "What is a canon?"
    with PROVIDERS[api](base_url, os.environ.get("API_KEY")) as provider:
        for chunk in provider.chat_stream(model=model, messages=[{"role": "user", "content": question}]):
            if chunk.thinking:
                print(chunk.thinking, end="", flush=True, file=sys.stderr)
            if chunk.usage:
                print(f"\n[{chunk.usage.input_tokens} + {chunk.usage.output_tokens} tokens]", file=sys.stderr)
            print(chunk.delta or chunk.refusal, end="", flush=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except ProviderError as error:
        sys.exit(f"\n{error.code}: {error.message} ({len(error.partial.text)} characters had come)")
