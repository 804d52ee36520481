"""A model behind an HTTP endpoint: answers, words, whom texts may be sent to; llama.cpp's server with smollm2."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from fedllm.models.endpoint import (
    CompletionEndpoint,
    EndpointError,
    endpoint_url,
    of_words,
    top_tokens,
)
from fedllm.settings.io import SettingsError
from fedllm.tasks.base import expand_params
from fedllm.tasks.endpoint_classification import EndpointClassification
from fedllm.training.black_box.forward_only import HttpForwardOnly, forward_only
from fedllm.training.tunable import initial_params, make_tunable
from simulations.completion_server import completion_server, why_not
from tests.support.endpoint_answers import Answers, answering

Make = Callable[..., Any]
ENDPOINT = {
    "model.access": "black-box",
    "prefix.length": 0,
    "endpoint.url": "http://127.0.0.1:9/v1",
    "task.label_words": [" negative", " positive"],
    "task.prompt": "Review: {text}\nSentiment:",
    "endpoint.prompts": ["Review: {text}\nSentiment:", '"{text}" The tone of this text is'],
}


@pytest.fixture
def address() -> Iterator[str]:
    with answering() as url:
        yield url


@pytest.mark.parametrize("form", ["content", "table"])
def test_each_prompt_is_asked_once(
    form: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers.form = form
    monkeypatch.setenv("FEDLLM_ENDPOINT_KEY", "secret")
    endpoint = CompletionEndpoint(address, model="m", top=7)
    words = [" negative", " positive", " unheard"]
    first = endpoint.word_log_probabilities(["a", "bb", "a"], words)
    assert first[0] == first[2] != first[1]
    assert first[0] == [pytest.approx(math.log(0.51)), pytest.approx(math.log(0.5)), -9.0]
    assert endpoint.word_log_probabilities(["bb"], words) == [first[1]]
    assert endpoint.asked == len(Answers.bodies) == 2
    assert Answers.bodies[0] == {
        "prompt": Answers.bodies[0]["prompt"],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 7,
        "model": "m",
    }
    assert Answers.keys == ["Bearer secret"] * 2


@pytest.mark.parametrize("form", ["broken", "failing"])
def test_an_answer_without_log_probabilities_is_refused_without_the_text(
    form: str, address: str
) -> None:
    Answers.form = form
    with pytest.raises(EndpointError, match="Expected log-probabilities") as caught:
        CompletionEndpoint(address).word_log_probabilities(["private words"], [" a"])
    assert "private" not in str(caught.value)
    with pytest.raises(EndpointError, match="got none"):
        CompletionEndpoint("http://127.0.0.1:9/v1", timeout=2).word_log_probabilities(["x"], ["a"])


@contextmanager
def server_of(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """An HTTP server on this machine that answers each POST by a function, and GET with what reached it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_neither_the_key_nor_the_text_elsewhere(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLLM_ENDPOINT_KEY", "secret")
    reached: list[str | None] = []

    def other(handler: BaseHTTPRequestHandler) -> None:
        reached.append(handler.headers["Authorization"])
        handler.send_error(500)

    with server_of(other) as elsewhere:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Location", f"{elsewhere}/completions")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with server_of(redirect) as url, pytest.raises(EndpointError, match=f"status {status}"):
            CompletionEndpoint(url).word_log_probabilities(["a"], ["b"])
    assert reached == []


def test_an_answer_without_end_is_refused() -> None:
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            for _ in range(300):
                handler.wfile.write(bytes(1 << 20))
                sent.append(1)

    with server_of(endless) as url, pytest.raises(EndpointError, match="at most 4194304 bytes"):
        CompletionEndpoint(url).word_log_probabilities(["a"], ["b"])
    assert len(sent) < 100


def test_words_are_told_by_their_first_token() -> None:
    found = {" pos": -1.0, " po": -1.5, " neg": -2.0, " ": -0.1, "x": -5.0}
    assert of_words(found, [" negative", " positive", " zebra"]) == [-2.0, -1.0, -5.0]
    with pytest.raises(EndpointError, match="differ in their first token"):
        of_words(found, [" positive", " possible"])
    assert top_tokens({"choices": [{"logprobs": {"top_logprobs": [{"\u0120good": -1}]}}]}) == {
        " good": -1.0
    }
    for bad in ({}, {"choices": [{"logprobs": {"top_logprobs": [{"a": 0.7}]}}]}):
        with pytest.raises(EndpointError):
            top_tokens(bad)


def test_a_server_does_not_choose_whom_texts_are_sent_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLLM_ENDPOINT_URL", raising=False)
    for own in ("http://localhost:1/v1", "http://127.0.0.1/v1/", "http://[::1]:3"):
        assert endpoint_url(own) == own.rstrip("/")
    for foreign in ("https://example.org/v1", "http://10.0.0.1", "http://127.0.0.1.example.org/v1"):
        with pytest.raises(EndpointError, match="FEDLLM_ENDPOINT_URL"):
            endpoint_url(foreign)
    for bad in ("file:///etc/passwd", "localhost:8080", ""):
        with pytest.raises(EndpointError, match="http"):
            endpoint_url(bad)
    monkeypatch.setenv("FEDLLM_ENDPOINT_URL", "https://models.example.org/v1")
    assert endpoint_url("http://localhost:1/v1") == "https://models.example.org/v1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.access": "white-box"}, r"model\.access=black-box for endpoint"),
        ({"prefix.length": 2}, r"prefix\.length=0"),
        ({"task.label_words": None}, r"task\.label_words"),
        ({"endpoint.prompts": [], "task.prompt": None}, r"endpoint\.prompts or task\.prompt"),
    ],
)
def test_settings_that_do_not_fit(
    changes: dict[str, Any], message: str, tiny_settings: Make
) -> None:
    with pytest.raises(SettingsError, match=message):
        tiny_settings(**ENDPOINT | changes)


def test_losses_are_those_of_the_calibrated_mixture(tiny_settings: Make, address: str) -> None:
    settings = tiny_settings(**ENDPOINT | {"endpoint.url": address})
    tunable = make_tunable(settings)
    model = forward_only(tunable)
    assert isinstance(model, HttpForwardOnly)
    assert isinstance(tunable.task, EndpointClassification)
    records = [
        {"text": "w5 w6", "label": "low"},
        {"text": "w7 w8 w9 w9", "label": "high"},
        {"text": "w9", "label": "low"},
    ]
    records = [r | {"label": settings.task.labels[i % 2]} for i, r in enumerate(records)]
    features = tunable.task.features(records)
    assert features[0].meta["prompts"][1] == '"w5 w6" The tone of this text is'
    (batch,) = model.batches(features, 10)
    params = initial_params(tunable, settings)
    start = model.losses(params, batch)
    answers = batch.answers
    assert answers is not None
    plain = answers.double().softmax(-1).mean(1)
    expected = -plain[torch.arange(3), batch.targets].log()
    torch.testing.assert_close(start.double(), expected, rtol=1e-5, atol=1e-6)
    rng = torch.Generator().manual_seed(0)
    moved = {n: v + torch.randn(v.shape, generator=rng) for n, v in params.items()}
    weights = moved["head.mixture"].double().softmax(0)
    each = (
        moved["head.scale"].double()[:, None] * answers.double() + moved["head.bias"].double()
    ).softmax(-1)
    mixed = (weights[:, None] * each).sum(1)
    expected = -mixed[torch.arange(3), batch.targets].log()
    torch.testing.assert_close(model.losses(moved, batch).double(), expected, rtol=1e-5, atol=1e-6)
    alone = torch.cat([model.losses(moved, next(model.batches([f], 1))) for f in features])
    torch.testing.assert_close(alone, model.losses(moved, batch))
    metrics = tunable.evaluate(params, features, 100)
    assert metrics["loss"] == pytest.approx(float(start.mean()), rel=1e-5)
    scores, _ = tunable.scores(expand_params(params, 3), batch)
    assert scores.shape == (3, 1, 2)


@pytest.mark.slow
def test_llama_cpp_serves_what_the_local_model_says(tiny_settings: Make) -> None:
    """A real server with the embedded model: the same log-probabilities as transformers', but for its arithmetic
    (weights of 4 bits are multiplied with activations of 8 bits there)."""
    if reason := why_not():
        pytest.skip(reason)
    from fedllm.models.backbone import load_backbone

    prompts = ["Review: a great film\nSentiment:", "Review: dull and stupid\nSentiment:"]
    words = [" negative", " positive"]
    with completion_server() as url:
        told = CompletionEndpoint(url, top=1000, timeout=300).word_log_probabilities(prompts, words)
    backbone = load_backbone("smollm2", dtype="float32", device="cpu")
    ids = [backbone.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in words]
    for row, prompt in zip(told, prompts, strict=True):
        inputs = backbone.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            logits = backbone.model(**inputs).logits[0, -1].float().log_softmax(-1)
        for value, token in zip(row, ids, strict=True):
            assert value == pytest.approx(float(logits[token]), abs=0.5)
    assert told[0][1] - told[0][0] > told[1][1] - told[1][0]
