"""Asks a chat model behind any OpenAI-compatible endpoint: answers kept, spending capped.

Every answer is a line of a JSON lines file under the hash of its request, so no question is paid
for twice. Before a question is sent, the most that it could cost is set aside; if that would pass
the cap, it is not sent.
"""

import http.client
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

from sparse_dict.config import LOOPBACK, InterpConfig
from sparse_dict.errors import UserError
from sparse_dict.storage import files

log = logging.getLogger(__name__)

CHARACTERS_A_TOKEN = 4  # of English text, for the estimate alone
MESSAGE_TOKENS = 16  # what a chat template adds to a message, at most
BACKOFF_S = 1.0  # before the first retry; doubled each time
LONGEST_WAIT_S = 60.0
MOST_BYTES = 1 << 24  # of an answer


class CapReached(UserError):
    """The next question might cost more than is left."""


class _Again(Exception):
    """The question may be sent once more; `after` seconds if the server said when."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Question:
    """One request: what the model is told, and how many tokens its answer may have."""

    system: str
    user: str
    max_tokens: int

    @property
    def tokens(self) -> float:
        """Tokens of the prompt, estimated."""
        return (len(self.system) + len(self.user)) / CHARACTERS_A_TOKEN + 2 * MESSAGE_TOKENS

    @property
    def most_tokens(self) -> int:
        """Tokens of the prompt, at most: byte-level vocabularies have one or more bytes a token."""
        return len(self.system.encode()) + len(self.user.encode()) + 2 * MESSAGE_TOKENS


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would take the API key to a host that the user did not name."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


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
        self.sent = 0  # requests of this process, retries included
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._key = api_key(settings)
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if urlsplit(self._url).hostname in LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)
        self._answers: dict[str, str] = {}
        self._reserved = 0.0
        self._margin = 1.0  # by how much a server has charged more than the most that we expected
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._file = self.path.open("a+b", buffering=0)
        self._read(self._file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def stop(self) -> None:
        """Send nothing more, from any thread; what is under way is still received and kept."""
        self._stopped.set()

    def known(self, question: Question) -> str | None:
        """The answer, if it was given before."""
        return self._answers.get(self._hash(question))

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """What so many tokens cost, by the config's prices per million."""
        million = 1_000_000
        price_in, price_out = self.settings.price_in or 0, self.settings.price_out or 0
        return tokens_in * price_in / million + tokens_out * price_out / million

    def ask(self, question: Question) -> str:
        """The answer's text, from the file or the endpoint; "" if the model gave none.

        Raises:
            CapReached: it might cost more than is left; nothing was sent.
            UserError: the endpoint cannot be reached, refuses, or is no chat endpoint; or `stop`
                was called.
        """
        found = self.known(question)
        if found is not None:
            return found
        wait = BACKOFF_S
        for attempt in range(self.settings.retries + 1):
            if self._stopped.is_set():
                break
            try:
                return self._send(question)
            except _Again as error:
                if attempt == self.settings.retries:
                    raise UserError(
                        f"{self._url} failed {attempt + 1} times, the last time: {error}"
                    ) from None
                log.debug("asking %s again: %s", self._url, error)
                self._stopped.wait(min(max(wait, error.after), LONGEST_WAIT_S))
                wait *= 2
        raise UserError(f"{self._url} is not asked any more")

    def _read(self, file: BinaryIO) -> None:
        """Take in what earlier runs were told; a line that a kill cut short is passed over."""
        file.seek(0)
        last = b"\n"
        for line in file:
            last = line
            try:
                record = json.loads(line)
                cost = float(record["cost"])
                if not cost >= 0:
                    continue
                self.spent += cost
                if isinstance(record["answer"], str):
                    self._answers[str(record["key"])] = record["answer"]
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue
        if not last.endswith(b"\n"):
            file.write(b"\n")  # so that the next record does not continue the half one

    def _body(self, question: Question) -> dict[str, Any]:
        return {
            "model": self.settings.model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.user},
            ],
            "max_tokens": question.max_tokens,
            "temperature": 0,
        }

    def _hash(self, question: Question) -> str:
        return files.fingerprint({"url": self._url, "request": self._body(question)})

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

    def _send(self, question: Question) -> str:
        most = self.cost(question.most_tokens, question.max_tokens)
        body = self._body(question)
        headers = {"Content-Type": "application/json", "User-Agent": "sparse-dict"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with self._set_aside(most):
            self.sent += 1
            try:
                with self._opener.open(request, timeout=self.settings.timeout_s) as response:
                    data = response.read(MOST_BYTES)
            except urllib.error.HTTPError as error:
                raise self._refused(error) from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                text = f"{type(reason).__name__}: {reason}"
                if isinstance(error, urllib.error.URLError) and not isinstance(
                    reason, TimeoutError | ConnectionResetError
                ):
                    raise UserError(f"{self._url} cannot be reached ({text})") from None
                # It may have been answered, and billed, though we do not know the answer.
                self._keep(question, body, None, {}, most)
                raise _Again(text) from None
            try:
                value = json.loads(data)
                answer = value["choices"][0]["message"].get("content")
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                self._keep(question, body, None, {}, most)
                raise UserError(
                    f"{self._url} answered with what is no chat completion: is interp.base_url "
                    "right? It ends in /v1 for most servers"
                ) from None
            usage = value.get("usage")
            usage = usage if isinstance(usage, dict) else {}
            cost = most
            tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if isinstance(tokens_in, int) and isinstance(tokens_out, int):
                cost = self.cost(max(tokens_in, 0), max(tokens_out, 0))
                if most:
                    self._margin = max(self._margin, cost / most)
            answer = answer if isinstance(answer, str) else ""
            self._keep(question, body, answer, usage, cost)
            return answer

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            try:
                text = error.read(2000).decode("utf-8", errors="replace")
            except (OSError, http.client.HTTPException):
                text = ""
        if self._key:
            text = text.replace(self._key, "***")
        reason = f"{error.code} {error.reason} {' '.join(text.split())[:300]}".strip()
        if error.code == 429 or error.code >= 500:
            after = error.headers.get("Retry-After") or ""
            return _Again(reason, float(after) if after.isdecimal() else 0.0)
        return UserError(f"{self._url} refuses: {reason}")

    def _keep(
        self,
        question: Question,
        body: dict[str, Any],
        answer: str | None,
        usage: dict[str, Any],
        cost: float,
    ) -> None:
        """Append a record; without an answer it only counts what may have been billed."""
        key = self._hash(question)
        record = {
            "key": key, "url": self._url, "request": body,
            "answer": answer, "usage": usage, "cost": cost,
        }  # fmt: skip
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            assert self._file is not None
            self._file.write(line)  # unbuffered, in append mode: one write
            os.fsync(self._file.fileno())
            self.spent += cost
            if answer is not None:
                self._answers[key] = answer


def api_key(settings: InterpConfig) -> str | None:
    """The key in the environment variable that the config names; None if it names none.

    Raises:
        UserError: the variable is not set, or holds what no header can.
    """
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not (key and key.isascii() and key.isprintable()):
        raise UserError(
            f"interp.api_key_env: the environment variable {settings.api_key_env} is "
            + ("not a key" if key else "not set")
        )
    return key
