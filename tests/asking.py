"""Requests for responses, in each form in which they can be made, and an agent that notes what it was told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from driving import decoded
from legato.testing import Driver

FORMS: dict[str, dict[str, Any]] = {
    "whole": {},
    "stream": {"stream": True},
    "background": {"background": True},
    "background stream": {"background": True, "stream": True},
}
"""Ways to ask for a response: what is added to the request."""


class Listener:
    """An agent that notes the conversation that it is told with each message, and says ``re`` and the message.

    Attributes:
        told: by message, the texts of its history, oldest first.
        calls: the messages it was asked to answer, in order.
    """

    def __init__(self) -> None:
        self.told: dict[str, list[str]] = {}
        self.calls: list[str] = []
        self._waits: dict[str, asyncio.Event] = {}

    def hold(self, text: str) -> asyncio.Event:
        """Give no answer to this message until the event is set."""
        return self._waits.setdefault(text, asyncio.Event())

    async def __call__(self, turn: Any) -> AsyncIterator[str]:
        text = turn.message.text
        self.calls.append(text)
        self.told[text] = [message.text for message in turn.history]
        yield "re "
        if text in self._waits:
            await self._waits[text].wait()
        yield text


def items(*texts: str) -> list[dict[str, Any]]:
    """Input items: the user's and the assistant's in turn, the last one the user's if their number is odd."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


async def ask(
    driver: Driver, input: Any, form: str = "whole", *, key: str | None = None, ended: bool = True, **fields: Any
) -> tuple[int, dict[str, Any]]:
    """Ask for a response: the status, and the response as it is in the end (or the error).

    Args:
        driver: of the application.
        input, fields: of the request.
        form: one of ``FORMS``.
        key: its Idempotency-Key.
        ended: whether to wait until a response in the background has ended.
    """
    headers = {} if key is None else {"idempotency-key": key}
    body = {"input": input, **FORMS[form], **{name: value for name, value in fields.items() if value is not None}}
    async with asyncio.timeout(30):
        answer = await driver.request("POST", "/v1/responses", json=body, headers=headers)
        if not answer.headers["content-type"].startswith("text/event-stream"):
            whole = answer.json()
            if answer.status == 200 and form == "background" and ended:
                await driver.request("GET", f"/v1/responses/{whole['id']}?stream=true")
                whole = (await driver.request("GET", f"/v1/responses/{whole['id']}")).json()
            return answer.status, whole
    told = [json.loads(message.data) for message in decoded(answer.body) if message.data != "[DONE]"]
    return answer.status, [each["response"] for each in told if "response" in each][-1]


async def texts(driver: Driver, session: str) -> list[str]:
    """The texts of a session's messages, in the order of the conversation."""
    answer = await driver.request("GET", f"/api/sessions/{session}/messages")
    assert answer.status == 200
    return [each.get("assistantResponse", each["userInput"]) for each in answer.json()]
