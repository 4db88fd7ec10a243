"""The page that shows where the pieces of one input look, by layer and head."""

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave

from fm.errors import UserError
from fm.files import replace
from fm.report import canvas, formats, heatmaps
from fm.report.heads import Habits
from fm.report.look import Look, Picture, Text
from fm.report.page import embedded, templates

# What a weight of 1 is written as, in two bytes.
_UNIT = 65535


def write(look: Look, out: Path) -> Path:
    """Writes `attention_maps.html` into the folder `out`, whole or not at all.

    Returns:
        Its path.

    Raises:
        UserError: `out` is a file.
    """
    page = render(look)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; the page needs a folder")
    out.mkdir(parents=True, exist_ok=True)
    replace(out / "attention_maps.html", page.encode())
    return out / "attention_maps.html"


def render(look: Look) -> str:
    """The page as HTML: nothing is loaded from outside, and no script runs but its own."""
    environment = templates()
    environment.filters |= {
        "percent": formats.percent,
        "count": formats.count,
        "decimal": lambda value: formats.MISSING if value is None else f"{value:.2f}",
        "pieces": lambda bits: formats.MISSING if bits is None else f"{2**bits:.1f}",
    }
    # The policy on the page names the one script that may run by its hash.
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "attention_maps.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    habits = look.habits()
    return environment.get_template("attention_maps.html.jinja").render(
        look=look,
        text=look.shown if isinstance(look.shown, Text) else None,
        picture=look.shown if isinstance(look.shown, Picture) else None,
        image=_image(look.shown),
        habits=habits,
        even=look.even(),
        maps=[(caption, _map(figure)) for caption, figure in heatmaps.figures(look)],
        data=_data(look, habits),
        script=script,
        digest=digest,
        named=heatmaps.NAMED,
    )


def _map(figure: Any) -> str | None:
    return embedded(canvas.png(figure, levels=256))


def _image(shown: Text | Picture) -> str | None:
    """The picture as a data URI."""
    if isinstance(shown, Text):
        return None
    out = io.BytesIO()
    pixels = np.repeat(shown.pixels, 3 // shown.pixels.shape[2], axis=2)
    imsave(out, pixels, format="png", metadata={"Software": "fm"})
    return embedded(out.getvalue())


def _data(look: Look, habits: list[list[Habits]]) -> dict[str, Any]:
    """What the script reads: the weights as 16-bit numbers, little end first, in base64."""
    N, H, L = look.weights_NHLS.shape[:3]
    numbers = np.round(np.clip(look.weights_NHLS, 0.0, 1.0) * _UNIT).astype("<u2")
    shown = look.shown
    data: dict[str, Any] = {
        "layers": N,
        "heads": H,
        "length": L,
        "unit": _UNIT,
        "causal": look.causal,
        "weights": base64.b64encode(numbers.tobytes()).decode(),
    }
    if isinstance(shown, Text):
        # The head that chooses most is the one shown first.
        names = [t.name + (f" of {t.part_of}" if t.part_of else "") for t in shown.tokens]
        entropy = [each.entropy or 0.0 for layer in habits for each in layer]
        return data | {
            "names": names,
            "head": int(np.argmin(entropy)),
            # A long one says most; in the second half it sees much in either mode.
            "query": max(range(L // 2, L), key=lambda n: shown.tokens[n].letters),
        }
    queries = shown.queries()
    return data | {
        "rows": shown.grid[0],
        "columns": shown.grid[1],
        "start": int(shown.start),
        "query": queries[-1] if look.causal else queries[len(queries) // 2],
    }
