"""A model, and the connection to it that all turns share."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import cast

from ..figures import ProviderFigures
from ..json import JsonObject
from ..provider import AsyncResponsesProvider, ProviderError, ProviderRefused
from ..provider.last_pass import learned
from ..tool import Tool
from .model import Model, Provider

logger = logging.getLogger("legato")


class ConnectedModel:
    """A model, what it may use, and the connection to it, which all turns share."""

    def __init__(
        self,
        model: Model,
        tools: Mapping[str, Tool],
        instructions: str,
        max_steps: int,
        options: JsonObject,
        think_tag: str | None,
        rules: frozenset[str],
    ) -> None:
        self.model = model
        self.rules = rules
        self.tools = tools
        self.instructions = instructions
        self.max_steps = max_steps
        self.options = options
        self.think_tag = think_tag
        self.background = model.background
        self.sealed = model.wire == "responses"  # reasoning is asked for in a form that can be told back
        self.unstored = model.wire == "responses" and "store" not in options  # where it is told all each time
        self.figures = ProviderFigures()
        self._provider: Provider | None = None
        self._farewells: set[asyncio.Task[None]] = set()

    @property
    def provider(self) -> Provider:
        """The client; made when it is first needed, since it belongs to the running event loop."""
        if self._provider is None:
            self._provider = self.model.provider()
            self._provider.rules |= self.rules
            self._provider.settings = dataclasses.replace(self._provider.settings, figures=self.figures)
        return self._provider

    @property
    def owner(self) -> str:
        """Whose what is opaque is."""
        return self.provider.addressee(self.model.name).owner

    @property
    def keeper(self) -> AsyncResponsesProvider:
        """The client, for what only those can who keep their answers."""
        return cast(AsyncResponsesProvider, self.provider)

    async def close(self) -> None:
        """Say what is still to be said to the provider, and let go of it."""
        if self._farewells:
            await asyncio.wait(self._farewells)
        if self._provider is not None:
            provider, self._provider = self._provider, None
            await provider.aclose()

    def learn(self, refusal: ProviderRefused, background: bool) -> bool:
        """Whether to ask again, in another way, because of what a refusal says of the provider."""
        name, words = self.model.name, words_of(refusal)
        if background and refusal.param == "background":
            logger.info("%s: no answers in the background here: %s", name, refusal)
            self.background = False
            return True
        if self.sealed and re.search(r"\binclude\b|encrypted.content.{0,3}is not supported", words, re.IGNORECASE):
            logger.info("%s: no sealed reasoning here: %s", name, refusal)
            self.sealed = False
            return True
        if self.unstored and re.search(r"\bstore\b", words):
            logger.info("%s: whether answers are kept cannot be said here: %s", name, refusal)
            self.unstored = False
            return True
        rule = learned(words, self.provider.addressee(name).rules)
        if rule is None or rule == "plain":
            return False
        logger.info("%s is told conversations by the rule %r from now on: %s", name, rule, refusal)
        self.provider.rules |= {rule}
        return True

    def end(self, response: str) -> None:
        """Have the provider stop a background answer that nobody waits for any more. Returns at once."""
        task = asyncio.create_task(self._end(response))
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _end(self, response: str) -> None:
        try:
            await self.keeper.cancel(response)
        except ProviderError as exc:
            logger.warning("response %s may go on at the model's provider: %s", response, exc)


def words_of(refusal: ProviderRefused) -> str:
    """What a refusal of the request itself says."""
    return f"{refusal} {refusal.param or ''} {refusal.body}" if refusal.status_code in (400, 404, 422) else ""
