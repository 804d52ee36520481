"""Client of a completion endpoint over HTTP that returns log-probabilities.

The interface of OpenAI's ``/v1/completions`` as llama.cpp, llama-cpp-python, vLLM and others serve it: a prompt
goes in, the log-probabilities of the likeliest next tokens come back. Neither gradients nor keys and values can
pass. The texts of a silo's examples do, so an endpoint must be the silo's own or one that it trusts with them; no
guarantee of fedllm's speaks about what the endpoint sees.
"""

from __future__ import annotations

import ipaddress
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from fedllm.models.embedded import ModelError

URL_VARIABLE = "FEDLLM_ENDPOINT_URL"
KEY_VARIABLE = "FEDLLM_ENDPOINT_KEY"
_MOST = 4 << 20  # bytes of an answer; log-probabilities of one token take some thousand


class EndpointError(ModelError):
    """The endpoint cannot be asked, or does not answer with log-probabilities. No text of an example is in
    the message."""


def endpoint_url(named: str) -> str:
    """Return the address to which this process sends its prompts.

    The environment variable ``FEDLLM_ENDPOINT_URL`` decides. Without it, ``named`` (of the settings, which the
    server sends) is taken where it is on this machine: a server must not choose whom a silo shows its texts to.

    Raises:
        EndpointError: neither is usable.
    """
    own = os.environ.get(URL_VARIABLE, "")
    url = own or named
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError(
            f"Expected an http(s) address in {URL_VARIABLE if own else 'endpoint.url'}, got {url!r}"
        )
    if not own and not _on_this_machine(parts.hostname):
        raise EndpointError(
            f"Expected the environment variable {URL_VARIABLE} for an endpoint that is not on this machine "
            f"(the texts go there, and settings come from the server), got endpoint.url={named!r} alone"
        )
    return url.rstrip("/")


def _on_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an error: neither the key nor a silo's text goes to an address that no one named."""

    def redirect_request(self, *arguments: Any) -> None:
        """Follow none."""
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class CompletionEndpoint:
    """Log-probabilities of words after prompts; each prompt is asked once in the life of the object.

    Args:
        url: base address, such as ``http://localhost:8080/v1``.
        model: name of the model at the endpoint, or empty.
        top: how many of the likeliest tokens to ask for.
        timeout: seconds for one answer.
        connections: prompts asked at the same time.

    A key for the endpoint is taken from the environment variable ``FEDLLM_ENDPOINT_KEY``, where it is set.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        top: int = 20,
        timeout: float = 60.0,
        connections: int = 4,
    ) -> None:
        self.url = url
        self.model = model
        self.top = top
        self.timeout = timeout
        self.connections = connections
        self.asked = 0
        self._known: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()

    def word_log_probabilities(
        self, prompts: Sequence[str], words: Sequence[str]
    ) -> list[list[float]]:
        """Return the log-probability of each word as the next token after each prompt, (prompts, words).

        A word is told by its first token, as the endpoint writes it. One that is not among the ``top``
        likeliest tokens counts as the least likely of those: its probability is at most that.

        Raises:
            EndpointError: no usable answer, or two words begin with the same token.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            with ThreadPoolExecutor(max_workers=self.connections) as pool:
                for prompt, found in zip(new, pool.map(self._ask, new), strict=True):
                    self._known[prompt] = found
        return [of_words(self._known[prompt], words) for prompt in prompts]

    def _ask(self, prompt: str) -> dict[str, float]:
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": self.top,
        }
        if self.model:
            body["model"] = self.model
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/completions", json.dumps(body).encode(), headers
        )
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                text = answer.read(_MOST + 1)
            told = None if len(text) > _MOST else json.loads(text)
        except urllib.error.HTTPError as error:
            raise EndpointError(
                f"Expected log-probabilities from {self.url}/completions, got HTTP status {error.code}"
            ) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or type(error).__name__
            raise EndpointError(
                f"Expected an answer with JSON from {self.url}/completions, got none: {why}"
            ) from None
        if len(text) > _MOST:
            raise EndpointError(
                f"Expected an answer of at most {_MOST} bytes from {self.url}/completions, got more"
            )
        with self._lock:
            self.asked += 1
        return top_tokens(told, self.url)


def top_tokens(told: Any, url: str = "the endpoint") -> dict[str, float]:
    """Return the likeliest next tokens of an answer and their log-probabilities, in either form that servers use:
    ``logprobs.top_logprobs[0]`` as a table, or ``logprobs.content[0].top_logprobs`` as a list.

    Raises:
        EndpointError: it holds none.
    """
    try:
        logprobs = told["choices"][0]["logprobs"]
        if logprobs.get("content"):
            pairs = [(t["token"], t["logprob"]) for t in logprobs["content"][0]["top_logprobs"]]
        else:
            pairs = list(logprobs["top_logprobs"][0].items())
        found = {_plain(str(token)): float(value) for token, value in pairs}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        found = {}
    # NaN, and a probability above 1 by more than rounding, are no answer.
    if not found or not all(value <= 1e-3 for value in found.values()):
        raise EndpointError(
            f"Expected log-probabilities of the next token from {url} (choices[0].logprobs), got an answer "
            "without; llama.cpp's and vLLM's servers give them, llama-cpp-python's with --logits_all true"
        )
    return found


def _plain(token: str) -> str:
    """Return a token with the space that some tokenizers write as a sign of their own."""
    return token.replace("\u0120", " ").replace("\u2581", " ")


def of_words(found: Mapping[str, float], words: Sequence[str]) -> list[float]:
    """Return the log-probability of each word's first token, see :meth:`CompletionEndpoint.word_log_probabilities`.

    Raises:
        EndpointError: two words begin with the same token.
    """
    least = min(found.values())
    tokens: list[str | None] = []
    for word in words:
        starts = [token for token in found if token.strip() and word.startswith(token)]
        tokens.append(max(starts, key=len, default=None))
    named = [token for token in tokens if token is not None]
    if len(set(named)) != len(named):
        raise EndpointError(
            f"Expected label words that differ in their first token at the endpoint, got {list(words)} with "
            f"first tokens {tokens}"
        )
    return [least if token is None else found[token] for token in tokens]
