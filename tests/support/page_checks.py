"""Checks of a page in a real browser: headless Chromium, driven by chromedriver (Debian's packages)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BINARIES = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
needs_browser = pytest.mark.skipif(
    None in BINARIES.values(),
    reason="no "
    + " and no ".join(k for k, v in BINARIES.items() if v is None)
    + " on this machine",
)
PHONE, DESKTOP = 390, 1280

VISIBLE = """
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, range = document.createRange();
  if (!node.data.trim() || !node.parentElement.checkVisibility()) continue;
  range.selectNodeContents(node);
  const box = range.getBoundingClientRect();
  if (box.width && box.height) return node.data.trim();
}
"""

# Smallest contrast (WCAG 2.2) of any visible text, against the nearest background that is painted.
CONTRAST = """
function channels(text) { return text.match(/[\\d.]+/g).map(Number); }
function luminance(c) {
  const l = c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2];
}
let worst = [99, ""], count = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, element = node.parentElement;
  if (!node.data.trim() || !element.checkVisibility() || element.closest("style, title, thead")) continue;
  const style = getComputedStyle(element);
  const drawn = element.closest("svg");
  let colour = channels(drawn ? style.fill : style.color), back = null;
  for (let e = element; e && !back; e = e.parentElement) {
    const c = channels(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.99) back = c;
  }
  back = back || [255, 255, 255];
  const pair = [luminance(colour), luminance(back)].sort((a, b) => b - a);
  const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
  count += 1;
  if (ratio < worst[0]) worst = [ratio, node.data.trim() + " " + colour + " on " + back];
}
return [worst[0], worst[1], count, getComputedStyle(document.body).backgroundColor];
"""

# What is drawn in each figure: its size, and the boxes of what was marked as data.
MARKS = """
const found = {};
for (const figure of document.querySelectorAll("figure[id]")) {
  const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
  const marks = [...svg.querySelectorAll("[id*=mark]")].map(mark => {
    const b = mark.getBoundingClientRect();
    const path = mark.querySelector("path");
    return [b.width, b.height, path ? path.getTotalLength() : 0,
            path ? getComputedStyle(path).stroke : "none"];
  });
  const texts = [...svg.querySelectorAll("text")].filter(t => t.getBoundingClientRect().width > 0);
  const outside = texts.filter(t => {
    const b = t.getBoundingClientRect();
    return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1;
  }).map(t => t.textContent);
  found[figure.id] = {
    width: box.width, height: box.height, marks: marks, texts: texts.map(t => t.textContent),
    outside: outside, label: svg.getAttribute("aria-label"), role: svg.getAttribute("role"),
    font: Math.min(...texts.map(t => t.getBoundingClientRect().height)),
  };
}
return found;
"""

WIDER = """
const limit = document.documentElement.clientWidth + 1, wide = [];
for (const e of document.querySelectorAll("body *")) {
  if (!e.checkVisibility() || e.closest("svg *") || e.closest("thead")) continue;
  let inner = false;
  for (let p = e.parentElement; p; p = p.parentElement)
    inner = inner || getComputedStyle(p).overflowX === "auto";
  if (!inner && e.getBoundingClientRect().right > limit) wide.push(e.tagName + "." + e.className);
}
return [document.documentElement.scrollWidth, limit, wide];
"""


class Browser:
    """One headless Chromium that records whatever a page complains of or asks for."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BINARIES["chromium"])
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(str(BINARIES["chromedriver"]))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_page_load_timeout(60)

    def command(self, name: str, **values: Any) -> Any:
        """A command of the Chrome DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, values)

    def open(self, page: Path, width: int = DESKTOP, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media="", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width <= PHONE}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(page.as_uri())

    def script(self, code: str) -> Any:
        return self.driver.execute_script(code)

    def complaints(self) -> list[str]:
        """What the page wrote to the console since it was opened, warnings too."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """Addresses that were asked for since the page was opened."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.add(message["params"]["request"]["url"])
        return {url for url in found if not url.startswith("data:")}
