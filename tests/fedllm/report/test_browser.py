"""The page in a real browser: headless Chromium, driven by chromedriver (Debian's packages)."""

from __future__ import annotations

import base64
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_checks import CONTRAST, DESKTOP, MARKS, PHONE, VISIBLE, WIDER, Browser, needs_browser
from report_runs import SILOS, enter, finished, new_run

from fedllm.report import write_report
from fedllm.run.folder import RunFolder
from privacy.events.constructors import gaussian, no_guarantee

pytestmark = needs_browser
LONG = "Krankenhaus-Verbund-" * 6 + "Süd"
FIGURES = ("epsilon", "delta", "tradeoff", "loss", "scores", "traffic")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.driver.quit()


def run_of(folder: Path, kind: str) -> RunFolder:
    """A run whose report has one difficulty."""
    if kind == "none":
        event = no_guarantee("privacy.mode=none: training without clipping or noise")
        return finished(new_run(folder, privacy={"mode": "none"}), event=event)
    if kind == "raw":
        run = finished(new_run(folder))
        enter(run, "B", 3, no_guarantee("counts sent as they are"), purpose="evaluate")
        return run
    if kind == "long":
        names = {LONG: 0.02, "<script>alert(1)</script>": 0.03, '_B $x_y$ & "quoted"': 0.04}
        return finished(new_run(folder, privacy={"silos": {LONG: {"epsilon": 2.0}}}), names)
    if kind == "many":
        return finished(
            new_run(folder), {f"silo {i:02}": 0.01 + 0.005 * (i % 3) for i in range(40)}
        )
    if kind == "trusted":
        views = {"outsider": gaussian(9.0), "server": no_guarantee("server sees the updates")}
        views["colluding:1"] = views["server"]
        settings = {"unit": "client", "noise_by": "server"}
        return finished(new_run(folder, privacy=settings), views=views)
    if kind == "lost":
        run = finished(new_run(folder))
        for name in ("ledger.sqlite", "settings.toml", "metrics.jsonl"):
            (run.path / name).unlink()
        return run
    if kind == "new":
        return new_run(folder)
    return finished(new_run(folder), {**SILOS, "C": 0.08})


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = ("good", "none", "raw", "long", "many", "trusted", "lost", "new")
    folder = tmp_path_factory.mktemp("runs")
    return {kind: write_report(run_of(folder, kind)) for kind in kinds}


KINDS = pytest.mark.parametrize(
    "kind", ["good", "none", "raw", "long", "many", "trusted", "lost", "new"]
)


@KINDS
def test_nothing_is_complained_of_and_nothing_is_asked_for(
    browser: Browser, pages: dict[str, Path], kind: str
) -> None:
    browser.open(pages[kind])
    assert browser.complaints() == []
    assert browser.requests() == {pages[kind].as_uri()}


def test_the_browser_would_tell(browser: Browser, tmp_path: Path) -> None:
    """The two checks above can fail."""
    page = tmp_path / "bad.html"
    page.write_text('<img src="absent.png"><script>console.warn("x"); undefinedFunction()</script>')
    browser.open(page)
    deadline = time.monotonic() + 10
    complaints: list[str] = []
    while len(complaints) < 3 and time.monotonic() < deadline:
        complaints += browser.complaints()
    assert len(complaints) >= 3
    assert (tmp_path / "absent.png").as_uri() in browser.requests()


@KINDS
def test_the_first_visible_text_is_the_guarantee(
    browser: Browser, pages: dict[str, Path], kind: str
) -> None:
    browser.open(pages[kind], PHONE)
    report = json.loads(pages[kind].with_name("report.json").read_text(encoding="utf-8"))
    assert browser.script(VISIBLE) == report["headline"]
    box = browser.script(
        "return document.querySelector('#guarantee').getBoundingClientRect().toJSON()"
    )
    assert box["top"] < 100
    assert box["width"] > 300


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("good", FIGURES),
        ("long", FIGURES),
        ("many", FIGURES),
        ("none", ("loss", "scores", "traffic")),
        ("raw", FIGURES),
        ("trusted", FIGURES),
        ("lost", ()),
        ("new", ()),
    ],
)
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_every_figure_is_drawn_with_its_marks(
    browser: Browser, pages: dict[str, Path], kind: str, names: tuple[str, ...], width: int
) -> None:
    browser.open(pages[kind], width)
    found = browser.script(MARKS)
    assert set(found) == {f"figure-{name}" for name in names}
    report = json.loads(pages[kind].with_name("report.json").read_text(encoding="utf-8"))
    lines = len(report["epsilon_by_round"]["silos"])
    marks = {"epsilon": lines, "delta": 3, "tradeoff": 3, "loss": 1, "scores": 2, "traffic": 2}
    for name in names:
        figure = found[f"figure-{name}"]
        assert figure["role"] == "img"
        assert len(figure["label"]) > 40, "no description for those who cannot see it"
        assert 250 < figure["width"] <= width
        assert figure["height"] > 100
        assert len(figure["marks"]) == marks[name]
        for across, high, length, stroke in figure["marks"]:
            assert across > 5
            assert high > 1
            assert length > 5
            assert stroke != "none"
        assert figure["outside"] == [], "text beyond the drawing's edge"
        assert figure["font"] >= 8, "text too small to read"
    if names and "epsilon" in names:
        texts = found["figure-epsilon"]["texts"]
        assert "round" in texts
        assert any(text.startswith("epsilon (") for text in texts)
        assert "target" in texts


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["good", "none", "trusted", "lost", "new"])
def test_text_is_legible_in_light_and_dark(
    browser: Browser, pages: dict[str, Path], kind: str, dark: bool
) -> None:
    browser.open(pages[kind], dark=dark)
    ratio, where, count, back = browser.script(CONTRAST)
    assert count > 100
    assert ratio >= 4.5, where
    channels = [int(value) for value in re.findall(r"\d+", back)[:3]]
    assert max(channels) < 60 if dark else min(channels) > 240


@pytest.mark.parametrize("dark", [False, True])
def test_lines_stand_out_from_the_page(
    browser: Browser, pages: dict[str, Path], dark: bool
) -> None:
    browser.open(pages["many"], dark=dark)
    found = browser.script(MARKS)
    page = browser.script("return getComputedStyle(document.body).backgroundColor")

    def luminance(colour: str) -> float:
        values = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    strokes = {mark[3] for figure in found.values() for mark in figure["marks"]}
    assert len(strokes) >= 8
    for stroke in strokes:
        low, high = sorted((luminance(stroke), luminance(page)))
        assert (high + 0.05) / (low + 0.05) >= 3.0, stroke


@KINDS
def test_a_phone_needs_no_sideways_scrolling(
    browser: Browser, pages: dict[str, Path], kind: str
) -> None:
    browser.open(pages[kind], PHONE)
    width, limit, wide = browser.script(WIDER)
    assert width <= limit
    assert wide == []
    tables = browser.script(
        "return [...document.querySelectorAll('table.stack')].map("
        "t => [t.scrollWidth, t.parentElement.clientWidth])"
    )
    assert tables
    assert all(inner <= outer for inner, outer in tables), tables


def test_long_names_and_many_silos_are_all_there(browser: Browser, pages: dict[str, Path]) -> None:
    count = "return document.querySelectorAll('#spent tbody tr').length"
    browser.open(pages["many"])
    assert browser.script(count) == 40
    browser.open(pages["long"], DESKTOP)
    assert browser.script(count) == 3
    text = browser.script("return document.querySelector('#spent').innerText")
    for name in (LONG, "<script>alert(1)</script>", '_B $x_y$ & "quoted"'):
        assert name in text


def test_infinite_epsilon_is_shown_as_such(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["raw"])
    cells = browser.script(
        "return [...document.querySelectorAll('#spent tbody tr')].map("
        "r => [...r.querySelectorAll('td.num')].map(c => c.innerText.trim()))"
    )
    assert "∞" not in "".join(cells[0])
    assert [cell for cell in cells[1] if cell == "∞"]
    assert not re.search(r"\d\.\d{3}$", cells[1][0])
    tile = "return document.querySelector('.tiles dd').innerText"
    assert browser.script(tile) == "∞"


def pdf_pages(data: bytes) -> int:
    """Number of pages of a PDF: its page objects, within compressed streams too."""
    streams = re.findall(rb"stream\r?\n(.*?)endstream", data, flags=re.DOTALL)
    text = data
    for stream in streams:
        try:
            text += zlib.decompress(stream)
        except zlib.error:
            continue
    return len(re.findall(rb"/Type\s*/Page\b", text))


@pytest.mark.parametrize("kind", ["good", "many", "long", "lost"])
@pytest.mark.parametrize("dark", [False, True])
def test_it_prints(
    browser: Browser, pages: dict[str, Path], kind: str, dark: bool, tmp_path: Path
) -> None:
    browser.open(pages[kind], dark=dark)
    browser.command("Emulation.clearDeviceMetricsOverride")
    printed = browser.command("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
    data = base64.b64decode(printed["data"])
    assert data.startswith(b"%PDF")
    count = pdf_pages(data)
    assert 2 <= count <= 20
    if os.path.exists("/usr/bin/pdftotext"):  # the text of the edges, where poppler is installed
        import subprocess

        (tmp_path / "page.pdf").write_bytes(data)
        command = ["pdftotext", "-layout", str(tmp_path / "page.pdf"), "-"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for number in range(1, count + 1):
            assert f"Page {number} of {count}" in text
    # On paper it is black on white, whatever the screen; and nothing is cut off at the right.
    browser.command("Emulation.setEmulatedMedia", media="print", features=[])
    size = {
        "width": 680,
        "height": 900,
        "deviceScaleFactor": 1,
        "mobile": False,
    }  # A4 in CSS pixels
    browser.command("Emulation.setDeviceMetricsOverride", **size)
    body = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    assert browser.script(body) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    width, limit, wide = browser.script(WIDER)
    assert wide == []
    assert width <= limit
