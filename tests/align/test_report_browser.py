"""The report in a real browser: headless Chromium, asked over a pipe in its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import HOSTILE, make_run

from align.report import write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


class Browser:
    """One page of a headless Chromium. It writes and reads JSON on two pipes, ended by a zero."""

    def __init__(self, profile: Path) -> None:
        from_here, to_browser = os.pipe()
        from_browser, to_here = os.pipe()
        self.process = subprocess.Popen(
            [
                # The protocol's pipes are file descriptors 3 and 4, wherever they come from.
                "bash", "-c", f'exec "$@" 3<&{from_here} 4>&{to_here}', "bash",
                str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
                f"--user-data-dir={profile}", "about:blank",
            ],
            pass_fds=(from_here, to_here), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(from_here)
        os.close(to_here)
        self._out, self._in = to_browser, from_browser
        self._rest = b""
        self._asked = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        """What the page had to say on its console, and what was refused to it"""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        found = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command."""
        self._asked += 1
        command: dict[str, Any] = {"id": self._asked, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._asked:
                assert "error" not in message, message
                return message["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], 120)
            more = os.read(self._in, 1 << 16) if ready else b""
            assert more, "Chromium has ended, or hangs"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        self._listen(message.get("method", ""), message.get("params", {}))
        return message

    def _listen(self, event: str, details: dict[str, Any]) -> None:
        if event == "Log.entryAdded":
            self.complaints.append(details["entry"]["text"])
        elif event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(details))
        elif event == "Network.requestWillBeSent":
            url = details["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.complaints.append(url)

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Loads a file at a width in CSS pixels, and waits until it is all there."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives; the page's own rules do not hold for it."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run, with hostile text in its prompts."""
    return write_report(make_run(tmp_path_factory.mktemp("run"), HOSTILE))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_opens_without_a_word_and_is_no_wider_than_the_screen(
    browser: Browser, report: Path, width: int, scheme: str
):
    browser.complaints.clear()
    browser.open(report, width, scheme)
    assert browser.complaints == []
    assert browser.value("document.title") == "rivers – run report"
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    # What is wider has a box to scroll in.
    assert (
        browser.value(
            """[...document.querySelectorAll('main *')].filter(one =>
            one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.wide, pre, svg'))
            .map(one => one.outerHTML.slice(0, 80))"""
        )
        == []
    )


def test_every_figure_is_there_and_large_enough_to_read(browser: Browser, report: Path):
    """Every image is decoded; a figure's text of 9 points, 12 pixels, is not scaled below 9."""
    for width in (1280, 400):
        browser.open(report, width)
        images = browser.value(
            """[...document.images].filter(one => one.checkVisibility()).map(one =>
                [one.complete, one.naturalWidth, one.getBoundingClientRect().width])"""
        )
        assert len(images) > 15
        for complete, natural, shown in images:
            assert complete and natural > 0
            assert 12 * shown / natural >= 9


def test_text_is_large_enough_and_stands_out(browser: Browser, report: Path):
    """No text below 11 pixels; ink on the page has a contrast of 7 or more, in both schemes
    (WCAG 2.1, 1.4.6)."""
    for scheme in ("light", "dark"):
        browser.open(report, 400, scheme)
        smallest = browser.value(
            """Math.min(...[...document.querySelectorAll('body *')]
                .filter(one => one.checkVisibility() && one.innerText?.trim())
                .map(one => parseFloat(getComputedStyle(one).fontSize)))"""
        )
        assert smallest >= 11
        contrast = browser.value(
            """(() => {
                const light = colour => {
                    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(c => c / 255)
                        .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
                };
                const {color, backgroundColor} = getComputedStyle(document.body);
                const [a, b] = [light(color), light(backgroundColor)];
                return Math.max(a, b) / Math.min(a, b);
            })()"""
        )
        assert contrast >= 7


def test_a_figure_is_enlarged_by_a_click_and_by_another_no_more(browser: Browser, report: Path):
    browser.open(report, 1280)
    width = "document.querySelector('.charts img').getBoundingClientRect().width"
    click = "document.querySelector('.charts label').click()"
    before = browser.value(width)
    browser.value(click)
    assert browser.value(width) > 1.8 * before
    browser.value(click)
    assert browser.value(width) == before


def test_the_graph_is_drawn_across_or_down(browser: Browser, report: Path):
    """On a wide screen steps follow to the right, on a narrow one downwards; the links work."""
    for width, way, axis in ((1280, "across", "x"), (400, "down", "y")):
        browser.open(report, width)
        shown = browser.value(
            "[...document.querySelectorAll('.graph')].filter(one => one.checkVisibility())"
            ".map(one => one.getAttribute('class'))"
        )
        assert shown == [f"graph {way}"]
        places = [
            browser.value(
                f"document.querySelector('.{way} [href=\"#step-{step}\"] rect')"
                f".getBoundingClientRect().{axis}"
            )
            for step in ("sft", "reward", "ppo", "evaluate")
        ]
        assert places == sorted(set(places))
    browser.value("document.querySelector('.down [href=\"#step-ppo\"]')"
                  ".dispatchEvent(new MouseEvent('click', {bubbles: true}))")  # fmt: skip
    assert browser.value("location.hash") == "#step-ppo"


def test_hostile_text_is_shown_and_runs_nothing(browser: Browser, report: Path):
    browser.open(report, 1280)
    assert browser.value("document.scripts.length") == 0
    assert browser.value("document.querySelectorAll('[onerror]').length") == 0
    assert HOSTILE in browser.value("document.body.textContent")


def test_a_page_that_breaks_the_rules_is_seen(browser: Browser, tmp_path: Path):
    """The other tests could not fail if the browser said nothing of these."""
    browser.complaints.clear()
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">"
        "<script>alert(1)</script><div style='width: 900px'>wide</div>"
    )
    browser.open(page, 400)
    assert any("Content Security Policy" in said for said in browser.complaints)
    assert browser.value("document.documentElement.scrollWidth") > 400
