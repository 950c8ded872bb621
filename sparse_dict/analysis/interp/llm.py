"""Asks a chat model behind any OpenAI-compatible endpoint: answers kept, spending capped.

Every answer is a line of a JSON lines file under the hash of its request, so that no question is
paid for twice. Before a request goes out, the first or a retry, the most that it could cost is set
aside; if that would pass the cap, it is not sent. The requests themselves, with retries and their
pauses, are made by the `openai` client (extra `interp`).
"""

import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from typing_extensions import TypedDict

from sparse_dict.config import LOOPBACK, InterpConfig
from sparse_dict.errors import UserError, hide, masked
from sparse_dict.storage import files, records
from sparse_dict.storage.untrusted import read_bytes

if TYPE_CHECKING:
    import httpx2
    import openai

CHARACTERS_A_TOKEN = 4  # of English text, for the estimate alone
MESSAGE_TOKENS = 16  # what a chat template adds to a message, at most
USAGE = ("prompt_tokens", "completion_tokens")  # what a server says of an answer
HINTS = {
    401: "is interp.api_key_env right?",
    403: "is interp.api_key_env right?",
    404: "are interp.base_url and interp.model right?",
    429: "a lower interp.parallel or more interp.retries may help",
}


class CapReached(UserError):
    """The next question might cost more than is left."""


@dataclass(frozen=True)
class Question:
    """One request: the prompt, and how many tokens its answer may have."""

    system: str
    user: str
    max_tokens: int

    @property
    def tokens(self) -> float:
        """Tokens of the prompt, estimated."""
        return len(self.system + self.user) / CHARACTERS_A_TOKEN + 2 * MESSAGE_TOKENS

    def body(self, model: str | None) -> dict[str, Any]:
        """What is sent."""
        texts = {"system": self.system, "user": self.user}
        return {
            "model": model,
            "messages": [{"role": role, "content": text} for role, text in texts.items()],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }


class _Kept(TypedDict):  # a line of the file
    key: str
    answer: str | None
    cost: records.Amount


class Client:
    """Answers from the file or the endpoint; safe to share between threads.

    Use as a context manager, in one process at a time: two that spend at once could pass the cap
    together.
    """

    def __init__(self, settings: InterpConfig, path: Path) -> None:
        assert settings.base_url is not None
        self.settings = settings
        self.path = path
        self.spent = 0.0  # by everything in the file
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._key = api_key(settings)
        self._answers: dict[str, str] = {}
        self._reserved = 0.0
        self._margin = 1.0  # by how much a server has charged more than the most that we expected
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        there = path.exists() or path.is_symlink()
        for line in read_bytes(path).splitlines() if there else ():
            with suppress(ValueError, RecursionError):  # a line that a kill cut short
                record = records.fitting(json.loads(line), _Kept)
                self.spent += record["cost"]
                if record["answer"] is not None:
                    self._answers[record["key"]] = masked(record["answer"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "_openai" in vars(self):
            self._openai.close()

    def stop(self) -> None:
        """Send nothing more, from any thread; what is under way is still received and kept."""
        self._stopped.set()

    def known(self, question: Question) -> str | None:
        """The answer, if it was given before."""
        return self._answers.get(self._hash(question.body(self.settings.model)))

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """What so many tokens cost, by the config's prices per million."""
        price_in, price_out = self.settings.price_in or 0, self.settings.price_out or 0
        return (tokens_in * price_in + tokens_out * price_out) / 1_000_000

    def ask(self, question: Question) -> str:
        """The answer's text, from the file or the endpoint; "" if the model gave none.

        Raises:
            CapReached: it might cost more than is left; nothing was sent.
            UserError: the endpoint cannot be reached, refuses, or is no chat endpoint; or `stop`
                was called.
        """
        if (found := self.known(question)) is not None:
            return found
        import openai

        try:
            self._openai.chat.completions.create(**question.body(self.settings.model))
        except openai.APIStatusError as error:
            raise UserError(f"{self._url} refuses: {self._reason(error.response)}") from None
        except openai.APITimeoutError:
            limit = f"interp.timeout_s={self.settings.timeout_s:g}"
            raise UserError(f"{self._url} does not answer within {limit}") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            text = f"{type(cause).__name__}: {cause}"
            raise UserError(f"{self._url} cannot be reached ({text})") from None
        return self._answers[self._hash(question.body(self.settings.model))]

    def _hash(self, body: dict[str, Any]) -> str:
        return files.fingerprint({"url": self._url, "request": body})

    @cached_property
    def _openai(self) -> "openai.OpenAI":
        """The endpoint's client; every request, retries too, passes through `_attempt`."""
        import openai

        attempt = self._attempt

        class Metered(openai.DefaultHttpxClient):
            def send(self, request: "httpx2.Request", **options: Any) -> "httpx2.Response":
                return attempt(request, partial(super().send, request, **options))

        # A redirect would take the API key to a host that the user did not name.
        local = urlsplit(self._url).hostname in LOOPBACK
        http = Metered(follow_redirects=False, trust_env=not local)
        return openai.OpenAI(
            base_url=self.settings.base_url,
            api_key=self._key or "none",  # without one the client would look for OPENAI_API_KEY
            timeout=self.settings.timeout_s,
            max_retries=self.settings.retries,
            http_client=http,
        )

    def _attempt(
        self, request: "httpx2.Request", send: Callable[[], "httpx2.Response"]
    ) -> "httpx2.Response":
        """Send a question once, if the cap allows it, and keep the answer and its cost."""
        import httpx2

        if self._stopped.is_set():
            raise UserError(f"{self._url} is not asked any more")
        if self._key is None:
            del request.headers["Authorization"]
        body = json.loads(request.content)
        # byte-level vocabularies have one or more bytes a token
        bytes_in = sum(len(message["content"].encode()) for message in body["messages"])
        most = self.cost(bytes_in + 2 * MESSAGE_TOKENS, body["max_tokens"])
        with self._set_aside(most):
            try:
                response = send()
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                raise  # nothing was sent
            except Exception:
                # It may have been answered, and billed, though we do not know the answer.
                self._keep(body, None, {}, most)
                raise
            if response.is_success:
                self._receive(body, response, most)
        return response

    @contextmanager
    def _set_aside(self, most: float) -> Iterator[None]:
        with self._lock:
            most *= self._margin
            limited = bool(self.settings.price_in or self.settings.price_out)
            if limited and self.spent + self._reserved + most > self.settings.max_cost:
                raise CapReached(
                    f"the next request may cost {most:.4g}, and {self.spent:.4g} of "
                    f"interp.max_cost={self.settings.max_cost:g} are spent"
                )
            self._reserved += most
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= most

    def _receive(self, body: dict[str, Any], response: "httpx2.Response", most: float) -> None:
        """Keep an answer with what it cost: by the server's count of tokens, or else `most`."""
        try:
            value = response.json()
            answer = value["choices"][0]["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError):
            self._keep(body, None, {}, most)
            raise UserError(
                f"{self._url} answered, but with no chat completion: is interp.base_url "
                "right? It ends in /v1 for most servers"
            ) from None
        told = value.get("usage")
        told = told if isinstance(told, dict) else {}
        usage = {key: told[key] for key in USAGE if isinstance(told.get(key), int)}
        cost = most
        if len(usage) == len(USAGE):
            cost = self.cost(*(max(n, 0) for n in usage.values()))
            if most:
                self._margin = max(self._margin, cost / most)
        self._keep(body, masked(answer) if isinstance(answer, str) else "", usage, cost)

    def _reason(self, response: "httpx2.Response") -> str:
        """A refusal in one line."""
        words = str(response.status_code), response.reason_phrase, *response.text.split()
        hint = HINTS.get(response.status_code)
        return masked(" ".join(words))[:300] + (f" ({hint})" if hint else "")

    def _keep(
        self, body: dict[str, Any], answer: str | None, usage: dict[str, Any], cost: float
    ) -> None:
        """Append a record; without an answer it only counts what may have been billed."""
        key = self._hash(body)
        record = {"key": key, "url": self._url, "request": body, "answer": answer}
        line = json.dumps(record | {"usage": usage, "cost": cost})
        with self._lock, self.path.open("ab+", buffering=0) as file:
            whole = not file.tell() or os.pread(file.fileno(), 1, file.tell() - 1) == b"\n"
            file.write(b"\n" * (not whole) + line.encode() + b"\n")  # one write, at the end
            os.fsync(file.fileno())
            self.spent += cost
            if answer is not None:
                self._answers[key] = answer


def check(settings: InterpConfig) -> None:
    """See that the key and the `openai` client are there."""
    api_key(settings)
    if importlib.util.find_spec("openai") is None:
        raise UserError("interp.base_url needs openai: pip install -e '.[interp]'")


def api_key(settings: InterpConfig) -> str | None:
    """The key in the environment variable that the config names; None if it names none."""
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not (key and key.isascii() and key.isprintable()):
        raise UserError(
            f"interp.api_key_env: the environment variable {settings.api_key_env} is "
            + ("not a key" if key else "not set")
        )
    hide(key)
    return key
