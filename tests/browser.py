"""Pages in headless Chromium, and what they hold."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Ends the script, starts an element, speaks plotly's pseudo-HTML and templates, and TeX.
EVIL = '</script><img src=x onerror=alert(1)><a href="https://example.org">x</a> %{x} &lt; $\\frac$ _'


class Elements(HTMLParser):
    """Counts the elements of a page, and collects what they would load."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str | None] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [value for key, value in attributes if key in ("src", "href")]


def with_script(page: str, script: str) -> str:
    """The page with a script of the test, which its own policy would not run, and a place for what that has to say."""
    page = re.sub(r"script-src [^;]*;", "script-src 'unsafe-inline';", page, count=1)
    start = """<p id="told"></p><script>
    const told = document.getElementById("told");
    const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));
    window.addEventListener("error", event => told.append("ERROR " + event.message));
    window.addEventListener("unhandledrejection", event => told.append("ERROR " + event.reason));
    console.error = console.warn = (...words) => told.append("ERROR " + words.join(" "));
    """
    return page.replace("</body>", f"{start}{script}</script></body>")


def told(dom: str) -> str:
    """What the script of the test had to say."""
    return html.unescape(re.search(r'<p id="told">(.*?)</p>', dom, re.DOTALL)[1])


def browse(page: str, tmp_path: Path, milliseconds: int = 10_000, height: int = 1000) -> str:
    """The page as a browser without network, with a window so high, has it after so much of its own time."""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    switches = "--headless --no-sandbox --disable-quic --no-first-run --disable-background-networking"
    switches += " --disable-component-update --disable-sync --use-angle=swiftshader"
    switches += " --enable-unsafe-swiftshader --dump-dom"
    switches += f" --virtual-time-budget={milliseconds} --window-size=1300,{height}"
    command = [str(CHROMIUM), *switches.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    command.append((tmp_path / "page.html").as_uri())
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
