"""A client for JSON over HTTP whose answers are checked, and whose failures all end in one line without passwords.

Each attempt has one deadline, from connecting to the last byte of the answer; redirects are not followed; answers have
a largest size. What may work later is tried again: lost connections, timeouts, the statuses of PASSING, and answers
that are not what was asked for.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from http import client
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import requests
from requests.auth import HTTPBasicAuth
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_when_event_set
from tenacity.nap import sleep_using_event
from urllib3 import Timeout
from urllib3.exceptions import HTTPError

from effopd.common.errors import ConfigError, UserError
from effopd.common.formatting import one_line
from effopd.common.progress import say
from effopd.config.http_addresses import problem_of, shown_url
from effopd.teachers.http_deadline import DeadlineAdapter

LONGEST_BACKOFF_SECONDS = 60.0
LARGEST_ANSWER = 2**24  # bytes, unless a request allows more
LONGEST_REMARK = 2**16  # bytes that are read of an answer which says why not
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses of a server that may answer later
LACKING = (401, 403, 404, 405, 501)  # statuses of an address that a server does not have, or not for this client
UNUSABLE = {"InvalidURL", "InvalidSchema", "MissingSchema", "LocationValueError", "URLSchemeUnknown", "UnicodeError"}
REASONS = {
    "NameResolutionError": "its host name is not known",
    "ProxyError": "the proxy that the environment names does not answer",
    "SSLError": "it does not speak TLS as `https` needs",
    "ContentDecodingError": "its answer is not compressed as it says",
}
FAILURES = (requests.RequestException, HTTPError, client.HTTPException, OSError, ValueError)

Read = TypeVar("Read")

logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of odd headers with a traceback


class AnswerError(UserError):
    """An answer that is not what was asked for; the message says what came."""


class _NotNowError(Exception):
    """No answer, or one that says to ask again, perhaps after some seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class JsonClient:
    """Asks one server, named `name` in messages, as an entry of `runtime.endpoints` says. Safe to use from threads.

    Raises ConfigError if its URL is not one. The user name and password in it are sent, and are in no message.
    """

    def __init__(self, name: str, endpoint: Mapping[str, Any]) -> None:
        if problem := problem_of(endpoint["url"]):
            raise ConfigError(
                f"config: the `url` in `runtime.endpoints` is {shown_url(endpoint['url'])!r}, which is no usable "
                f"address ({problem}). Write the base of the server's interface, such as http://node7:8000/v1."
            )
        parts = urlsplit(endpoint["url"])
        self.url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
        self.name, self.endpoint = f"{name} at {self.url}", endpoint
        self._session = requests.Session()
        adapter = DeadlineAdapter(pool_maxsize=endpoint["concurrency"])
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._secrets: list[str] = []
        if parts.username is not None:
            pair = unquote(parts.username).encode(), unquote(parts.password or "").encode()
            self._session.auth = HTTPBasicAuth(*pair)
            token = base64.b64encode(b":".join(pair)).decode()
            self._secrets = [text for text in (token, parts.password, unquote(parts.password or "")) if text]
        self._over = threading.Event()

    def give_up(self) -> None:
        """Let no request that has begun be tried again: what waits for its next attempt fails at once."""
        self._over.set()
        self._over = threading.Event()

    def ask(
        self,
        method: str,
        address: str,
        body: Any = None,
        *,
        read: Callable[[Any], Read],
        largest: int = LARGEST_ANSWER,
        optional: bool = False,
        hints: Mapping[str, str] = MappingProxyType({}),
    ) -> Read | None:
        """What `read` makes of the JSON that the server answers with; None if `optional` and it lacks the address.

        `read` raises a UserError for an answer that is not what was asked for: such a one is asked for again. `hints`
        are remedies by a word of the refusal that they are for. Raises UserError if the server refuses, or has not
        answered after `retries` further attempts.
        """
        over = self._over
        attempts = Retrying(
            stop=stop_after_attempt(self.endpoint["retries"] + 1) | stop_when_event_set(over),
            wait=self._wait,
            sleep=sleep_using_event(over),
            retry=retry_if_exception_type((_NotNowError, AnswerError)),
            reraise=True,
        )
        try:
            return attempts(self._ask_once, method, address, body, read, largest, optional, hints)
        except (_NotNowError, AnswerError) as error:
            count = attempts.statistics["attempt_number"]
            often = f"in {count} attempt{'s' * (count > 1)} ({error})"
            if isinstance(error, AnswerError):
                message = f"gave no usable answer {often}. Check how it is served, and `runtime.endpoints`"
            else:
                message = f"did not answer {often}. Start it again, or fix `runtime.endpoints`"
            raise UserError(f"{self.name} {message}; what was scored is kept.") from None

    def _wait(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: as the server says, at most a whole timeout; else random and doubling."""
        doubled = self.endpoint["backoff"] * 2.0 ** min(state.attempt_number - 1, 30)
        drawn = random.uniform(0, min(doubled, LONGEST_BACKOFF_SECONDS))
        error = state.outcome.exception() if state.outcome else None
        return float(max(drawn, min(getattr(error, "after", 0.0), self.endpoint["timeout"])))

    def _ask_once(
        self,
        method: str,
        address: str,
        body: Any,
        read: Callable[[Any], Read],
        largest: int,
        optional: bool,
        hints: Mapping[str, str],
    ) -> Read | None:
        timeout: Any = Timeout(total=self.endpoint["timeout"])  # which requests takes, and does not say so
        try:
            with self._session.request(
                method,
                address,
                json=body,
                timeout=timeout,
                stream=True,
                allow_redirects=False,
            ) as answer:
                if optional and answer.status_code in LACKING:
                    return None
                if not 200 <= answer.status_code < 300:
                    raise self._refusal(answer, hints)
                content = _content(answer, largest)
        except FAILURES as error:
            raise self._failure(error) from None
        try:
            return read(_parsed(content))
        except UserError as error:
            reason = self._clean(str(error))
            say(f"{self.name} gave no usable answer ({reason}): nothing of it is kept")
            raise AnswerError(reason) from None

    def _refusal(self, answer: requests.Response, hints: Mapping[str, str]) -> Exception:
        """What an answer's status means."""
        status = answer.status_code
        if 300 <= status < 400:
            target = self._clean(shown_url(answer.headers.get("Location", "nowhere")))
            return UserError(
                f"{self.name} redirects to {target} (status {status}), which is not followed. If that is the server to "
                "ask, give its address as `url` in `runtime.endpoints`."
            )
        said = f"status {status}: {self._clean(_said(answer))}"
        if status in PASSING:
            return _NotNowError(said, _seconds(answer.headers.get("Retry-After", "")))
        fitting = [hint for word, hint in hints.items() if word in said]
        remedy = fitting[0] if fitting else "Fix `runtime.endpoints`, or how it is served."
        return UserError(f"{self.name} refuses ({said}). {remedy}")

    def _failure(self, error: Exception) -> Exception:
        """What the failure of a request means."""
        chain = list(_chain(error))
        kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
        said = " ".join(str(one) for one in chain)
        if "CERTIFICATE_VERIFY_FAILED" in said or "CA certificate bundle" in said:
            return UserError(
                f"{self.name} shows a certificate that cannot be verified. Name a file with its authority's in the "
                "environment variable `REQUESTS_CA_BUNDLE`."
            )
        if kinds & UNUSABLE:  # the URL itself was checked at the start
            return UserError(
                f"{self.name} cannot be asked: the proxy that the environment names (`http_proxy`, `https_proxy` or "
                "`all_proxy`) is not usable. Fix it, or name the server in `no_proxy`."
            )
        if "timed out" in said or any(isinstance(one, TimeoutError | requests.Timeout) for one in chain):
            return _NotNowError("it took too long")
        known = (reason for kind, reason in REASONS.items() if kind in kinds)
        return _NotNowError(next(known, "connection refused" if "refused" in said else "connection lost"))

    def _clean(self, text: str) -> str:
        """A server's words on one line, without the password that was sent to it."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return one_line(text, 300).rstrip(".")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came from or that it carries."""
    seen: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting and len(seen) < 20:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            waiting += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]
    return iter(seen)


def _content(answer: requests.Response, largest: int) -> bytes:
    """The body of an answer, of at most `largest` bytes when unpacked. Raises AnswerError if it is larger."""
    content = bytearray()
    for chunk in answer.iter_content(2**16):
        content += chunk
        if len(content) > largest:
            raise AnswerError(f"an answer of more than {largest} bytes")
    return bytes(content)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        start = one_line(content[:60].decode("utf-8", "replace"), 60)
        raise AnswerError(f"an answer that is not JSON, {start!r}" if content else "an empty answer") from None


def _said(answer: requests.Response) -> str:
    """Why a server does not answer, in its own words."""
    try:
        text = next(answer.iter_content(LONGEST_REMARK), b"").decode("utf-8", "replace")
    except FAILURES:
        return answer.reason or "nothing more"
    try:
        return remark(json.loads(text)) or text
    except (ValueError, RecursionError):
        return text.strip() or answer.reason or "nothing more"


def remark(body: Any) -> str | None:
    """The message in an error of a server, as the interface has it or as others do; None if there is none."""
    for one in (body.get("error"), body) if isinstance(body, dict) else ():
        message = one.get("message", one.get("detail")) if isinstance(one, dict) else one
        if isinstance(message, str) and message:
            return message
    return None


def _seconds(header: str) -> float:
    """The wait that a Retry-After header asks for: seconds, or an HTTP date; 0 if it is neither."""
    try:
        if header.strip().isascii() and header.strip().isdecimal():
            return float(header)
        wait = parsedate_to_datetime(header).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, wait) if math.isfinite(wait) else 0.0
