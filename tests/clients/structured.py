"""Programs of Python that have a model answer by the call of one tool, each as the client of a server before a model.

``python structured.py URL`` plays every case of the packages that are installed, and prints one line of JSON for each:
what came of it, or what was raised. The model is told the name of the case.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
from pydantic import BaseModel

warnings.simplefilter("ignore")
BASE = f"{sys.argv[1]}/v1"
NAME = "weather"


class Report(BaseModel):
    """How the weather is."""

    city: str
    degrees: int


SCHEMA = Report.model_json_schema()
TOOL = {"type": "function", "function": {"name": "Report", "parameters": SCHEMA}}
CHOICE = {"type": "function", "function": {"name": "Report"}}
Case = Callable[[str], Any]


def said(case: str) -> list[Any]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": case}]


def instructor_cases() -> dict[str, Case]:
    import instructor

    client = instructor.from_openai(openai.OpenAI(base_url=BASE, api_key="none", max_retries=0))
    waiting = instructor.from_openai(openai.AsyncOpenAI(base_url=BASE, api_key="none", max_retries=0))

    async def ask(case: str) -> Any:
        return await waiting.chat.completions.create(
            model=NAME, response_model=Report, messages=said(case), max_retries=0
        )

    def run(case: str) -> Any:
        return asyncio.run(ask(case)).model_dump()

    return {
        "whole": lambda case: client.chat.completions.create(
            model=NAME, response_model=Report, messages=said(case), max_retries=0
        ).model_dump(),
        "async": run,
        "partial": lambda case: list(
            client.chat.completions.create_partial(
                model=NAME, response_model=Report, messages=said(case), max_retries=0
            )
        )[-1].model_dump(),
        "completion": lambda case: client.chat.completions.create_with_completion(
            model=NAME, response_model=Report, messages=said(case), max_retries=0
        )[0].model_dump(),
    }


def llm_cases() -> dict[str, Case]:
    folder = Path(tempfile.mkdtemp())
    os.environ["LLM_USER_PATH"] = str(folder)
    model = {"model_id": NAME, "model_name": NAME, "api_base": BASE, "supports_schema": True, "supports_tools": True}
    (folder / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    from click.testing import CliRunner
    from llm.cli import cli

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, [*arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output.strip()

    functions = 'def clock() -> str:\n    "Tells the time."\n    return "12:00"\n'
    about = ("prompt", "-m", NAME, "-s", "Be brief.")

    def goes_on(case: str) -> str:
        run(*about, case)
        return run("prompt", "-c", f"{case}, again")

    return {
        "stream": lambda case: run(*about, case),
        "whole": lambda case: run(*about, "--no-stream", case),
        "option": lambda case: run(*about, "-o", "temperature", "0.5", "-o", "seed", "1", "-o", "stop", "x", case),
        "schema": lambda case: json.loads(run(*about, "--schema", json.dumps(SCHEMA), case)),
        "tools": lambda case: run(*about, "--functions", functions, case),
        "tools whole": lambda case: run(*about, "--no-stream", "--functions", functions, case),
        "goes on": goes_on,
    }


def litellm_cases() -> dict[str, Case]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is asked for over the network
    import litellm

    about: dict[str, Any] = {"model": f"openai/{NAME}", "api_base": BASE, "api_key": "none", "max_retries": 0}

    def call(choice: Any, stream: bool) -> Case:
        def play(case: str) -> Any:
            answer: Any = litellm.completion(
                **about, messages=said(case), tools=[TOOL], tool_choice=choice, stream=stream
            )
            if stream:
                answer = litellm.stream_chunk_builder(list(answer))
            (made,) = answer.choices[0].message.tool_calls
            assert made.function.name == "Report", made
            return json.loads(made.function.arguments)

        return play

    return {
        f"{name} {'stream' if stream else 'whole'}": call(choice, stream)
        for name, choice in (("function", CHOICE), ("required", "required"))
        for stream in (False, True)
    }


def langchain_cases() -> dict[str, Case]:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=NAME, base_url=BASE, api_key="none", max_retries=0, use_responses_api=False)
    by_call = model.with_structured_output(Report, method="function_calling")
    as_dict = model.with_structured_output(SCHEMA, method="function_calling", include_raw=True)
    strict = model.with_structured_output(Report, method="function_calling", strict=True)
    return {
        "invoke": lambda case: by_call.invoke(said(case)).model_dump(),
        "stream": lambda case: list(by_call.stream(said(case)))[-1].model_dump(),
        "dict": lambda case: as_dict.invoke(said(case))["parsed"],
        "strict": lambda case: strict.invoke(said(case)).model_dump(),
    }


def main() -> None:
    logging.disable(logging.CRITICAL)
    makers = {
        "instructor": instructor_cases,
        "llm": llm_cases,
        "litellm": litellm_cases,
        "langchain_openai": langchain_cases,
    }
    for package, make in makers.items():
        if importlib.util.find_spec(package) is None:
            continue
        for name, play in make().items():
            case = f"{package} {name}"
            try:
                seen = {"result": play(case)}
            except Exception:
                seen = {"error": traceback.format_exc()[-3000:]}
            print(json.dumps({"case": case, **seen}), flush=True)


main()
