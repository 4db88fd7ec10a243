"""The widths of a page's parts as Chromium lays it out; tests are skipped where there is none."""

import json
import re
import shutil
import subprocess

import pytest

_MEASURE = """<script>
addEventListener("load", () => {
  const all = [...document.querySelectorAll("details")];
  all.forEach(each => each.open = true);
  const root = document.documentElement;
  const found = [...document.querySelectorAll("SELECTOR")];
  const beyond = found.map(each => each.scrollWidth - each.clientWidth);
  parent.postMessage({page: root.scrollWidth, window: root.clientWidth, beyond}, "*");
});
</script>"""
_FRAME = """<body style="margin:0">
<iframe src="page.html" style="border:0;width:WIDTHpx;height:900px"></iframe>
<pre id="found"></pre>
<script>
addEventListener("message", event => {
  found.textContent = "FOUND" + JSON.stringify(event.data) + "END";
});
</script>"""


def layout(page: str, width: int, folder, selector: str = ".scroll") -> dict:
    """Returns a page's width and its window's, and how far each part of a selector goes beyond.

    Everything folded is opened first. A window of Chromium has a smallest width, so the page is in
    a frame.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if browser is None:
        pytest.skip("no Chromium")
    page = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", page)
    page = page.replace("</body>", _MEASURE.replace("SELECTOR", selector) + "</body>")
    (folder / "page.html").write_text(page)
    (folder / "frame.html").write_text(_FRAME.replace("WIDTH", str(width)))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000")
    done = subprocess.run(
        [
            *(browser, *flags, f"--user-data-dir={folder / 'profile'}", "--window-size=1600,1000"),
            *("--dump-dom", (folder / "frame.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(re.search("FOUND(.*?)END</pre>", done.stdout)[1])
