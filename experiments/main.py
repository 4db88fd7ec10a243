"""The console command `fm`: `fm NAME ...` is `python -m experiments.NAME ...`."""

from __future__ import annotations

import ast
import difflib
import pathlib
import re
import runpy
import sys
from collections.abc import Sequence

import experiments
from experiments import list as listing

# The order of a first look; others follow by name.
_FIRST = (
    *("compare", "pretrain", "adapt", "predict", "export", "generate", "search", "ablate"),
    *("claims", "multitask", "text_quality", "paired", "report", "attention_maps", "plan"),
    *("benchmark", "list", "doctor"),
)
_RUNS = re.compile(r"^ +(cli\.run\(|sys\.exit\(run\()", re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, or lists the commands; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    name, *rest = arguments
    # This one answers without importing JAX.
    if name == "list":
        return listing.run(rest)
    known = commands()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        print(f"error: fm {name}: no such command; {hint}", file=sys.stderr)
        return 2
    experiments.exit_on_signals()
    sys.argv = [f"fm {name}", *rest]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    return 0


def commands() -> dict[str, str]:
    """Returns what each command does, in a line, by name; imports none of them."""
    found = {}
    for path in pathlib.Path(__file__).parent.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        if _RUNS.search(source):
            lines = (ast.get_docstring(ast.parse(source)) or "").splitlines()
            found[path.stem] = lines[0].strip() if lines else ""
    order = {name: n for n, name in enumerate(_FIRST)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def help_text() -> str:
    """Returns the list of commands."""
    rows = "\n".join(listing.aligned(iter(commands().items())))
    return (
        "fm: is pretraining worth it for your data? Each command is also python -m "
        f"experiments.NAME.\n\n{rows}\n\nfm NAME --help lists the flags of a command."
    )


if __name__ == "__main__":
    sys.exit(main())
