"""The shared shell of every experiment: flags in, one-line errors out, exit codes kept.

Exit codes: 0 done (or help), 2 bad input, 130 interrupted and saved.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import pathlib
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import flags

from fm import lock
from fm.errors import UserError
from fm.files import cache_dir, expand_path
from fm.parallel import distributed
from fm.parallel import mesh as meshes
from fm.training import runtime
from fm.training.failures import first_line, is_out_of_memory
from fm.training.signals import Interrupted

NUMBER = r"[0-9]+(\.[0-9]*)?|\.[0-9]+"
_KINDS = {"comma separated list of strings": "a,b,...", "string enum": "name", "int": "number"}

# Flags of earlier versions.
RENAMED_FLAGS = {
    "imported": "published_model",
    "upstream": "out_of_domain_dataset",
    "shots": "num_fewshot",
    "tokens": "max_length",
    "studies": "ablations",
    "what": "suite",
    "only": "filter",
    "peer": "baseline",
    "given": "init_example",
    "keep": "keep_fraction",
    "coordinator": "coordinator_address",
    "processes": "num_processes",
    "process": "process_id",
    "early_stop": "early_stopping_patience",
    "accumulate": "grad_accum_steps",
    "patience": "batch_timeout_seconds",
}
_NOBODY = "Event loop is closed"
_hooks = [sys.unraisablehook]  # of before
_SMALLER = "what was saved is kept; take a smaller size or batch_size, or a machine with more"

Define = Callable[[flags.FlagValues], None]
Main = Callable[[flags.FlagValues], None]


def run(name: str, doc: str | None, define: Define, main: Main) -> None:
    """Parses the command line, runs the experiment and exits.

    Args:
      name: of the experiment, as in `python -m experiments.NAME`.
      doc: printed by --help, above the flags.
      define: adds the experiment's flags.
      main: the experiment.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a terminal that cannot show everything
            stream.reconfigure(errors="backslashreplace")
    sys.exit(call(name, doc, define, main, sys.argv[1:]))


def call(name: str, doc: str | None, define: Define, main: Main, arguments: Sequence[str]) -> int:
    """`run`, with the command line given and the exit code returned."""
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_boolean("help", False, "print this and exit", flag_values=values, short_name="h")
    try:
        rest = values([name, *arguments])[1:]
        if values["help"].value:
            print(_help(name, doc, values))
            return 0
        if rest:
            raise UserError(f"{rest[0]!r} is not a flag; flags look like --name=value")
        settle()
        with _terminable(), _devices(values):
            try:
                main(values)
            finally:
                lock.release()
    except flags.Error as error:
        return _fail(_flag_message(error, values), 2)
    except UserError as error:
        return _fail(error, 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 2)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(f"out of memory ({first_line(error)}); {_SMALLER}", 2)
    except (Interrupted, KeyboardInterrupt) as error:
        return _fail(str(error) or "interrupted; the same command goes on where it was", 130)
    return 0


def settle() -> None:
    """How every process of an experiment computes, keeps memory and programs, and its peace."""
    runtime.request_deterministic_gpu_ops()
    runtime.keep_freed_memory()
    if sys.unraisablehook is not _unraisable:
        _hooks[:] = [sys.unraisablehook]
        sys.unraisablehook = _unraisable
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _unraisable(told: sys.UnraisableHookArgs) -> None:
    # TensorStore's writes that end after the one that failed, and was told, find nobody waiting.
    if not (isinstance(told.exc_value, RuntimeError) and str(told.exc_value) == _NOBODY):
        _hooks[0](told)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and Ctrl-C interrupt the experiment; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _devices(values: flags.FlagValues) -> Iterator[None]:
    """What the flags of `define_mesh` and `define_processes` ask for, where there are any."""
    asked = {
        name: values[name].value if name in values else None
        for name in ("mesh", "coordinator", "processes", "process")
    }
    if "chips" in values:  # a mesh of chips is planned, not made
        asked["mesh"] = None
    config = None if asked["mesh"] is None else meshes.parse_mesh(asked["mesh"])
    at, count, index = (asked[name] for name in ("coordinator", "processes", "process"))
    if at is None and (count, index) != (None, None):
        raise UserError("--processes and --process go with --coordinator=HOST:PORT")
    if at is not None:
        distributed.initialize(at, count, index)
        config = config or meshes.MeshConfig(data=jax.device_count())
    with meshes.use_mesh(config and config.build()):
        yield


def _flag_message(error: flags.Error, values: flags.FlagValues) -> str:
    """absl's error, with what the flag accepts."""
    text = str(error)
    if isinstance(error, flags.UnrecognizedFlagError):
        new = RENAMED_FLAGS.get(error.flagname)
        if new in values:
            return f"--{error.flagname} is now --{new}"
        names = [f"--{name}" for name in sorted(values) if len(name) > 1]
        meant = difflib.get_close_matches(f"--{error.flagname}", names, 1, 0.8)
        hint = f" (meant is {meant[0]}?)" if meant else ""
        return f"--{error.flagname} is not a flag{hint}; accepted are {', '.join(names)}"
    given = re.search(r"(--(\w+)(?:=.*?)?)(?:: |$)", text, re.DOTALL)
    if given is None or given[2] not in values:
        return text
    return f"{given[1]}: takes {_takes(values[given[2]])}"


def _takes(flag: flags.Flag) -> str:
    """What a flag accepts, in words."""
    if isinstance(flag.parser, flags.EnumParser):
        return f"one of {', '.join(flag.parser.enum_values)}"
    if flag.boolean:
        return "true or false"
    return flag.parser.syntactic_help or "a text"


def _fail(error: object, code: int) -> int:
    print(f"error: {readable(str(error))}", file=sys.stderr)
    return code


def readable(text: str) -> str:
    """One line, in which what would move a cursor or turn the text about is written out."""
    line = " ".join(text.split())
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


def _help(name: str, doc: str | None, values: flags.FlagValues) -> str:
    lines = [f"python -m experiments.{name}", "", textwrap.dedent(doc or "").strip(), "", "flags:"]
    for key in sorted(values):
        flag = values[key]
        if flag.name != key or key in ("h",):
            continue
        kind = "" if flag.boolean else f"={_KINDS.get(flag.flag_type(), flag.flag_type())}"
        default = "" if flag.default in (None, False, "") else f" (default {flag.default_as_str})"
        text = f"--{key}{kind}  {flag.help}{default}"
        lines += textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent=" " * 6)
    return "\n".join(lines)


def define_out(values: flags.FlagValues, default: str) -> None:
    """--out, the folder everything goes to."""
    flags.DEFINE_string("out", default, "folder for all output", flag_values=values)


def define_data(values: flags.FlagValues) -> None:
    """Flags that say where data lies and how to read it."""
    for name, default, text in (
        ("data_dir", None, "folder with prepared TFDS data sets; the user's cache if not given"),
        ("text_column", "text", "column or key with the text, of csv and jsonl files"),
        ("label_column", "label", "column or key with the label, of csv and jsonl files"),
        ("target_column", "", "column or key with a text to write, in the label's stead"),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, text in (
        ("label_field", "which field of file names is the label, as 0 in 7_george_3.wav"),
        ("speaker_field", "which one is the speaker, of whom none is in both splits, as 1 there"),
    ):
        flags.DEFINE_integer(name, None, text, flag_values=values, lower_bound=0)


def define_mesh(values: flags.FlagValues) -> None:
    """--mesh, of what trains, adapts or reads a model; see `fm.parallel.mesh`."""
    flags.DEFINE_string(
        "mesh",
        None,
        "devices that a model and its rows are spread over, all there are, by data, fsdp and "
        "tensor, such as data:2,fsdp:4; the default device if not given",
        flag_values=values,
    )


def divides(rows: int, what: str) -> None:
    """Raises UserError where the mesh splits rows into parts that these do not divide into."""
    mesh = meshes.current_mesh()
    ways = 1 if mesh is None else meshes.config_from_mesh(mesh).batch_shards
    if rows % ways:
        raise UserError(
            f"{what}: a mesh of data x fsdp = {ways} takes a multiple of that; or split by tensor"
        )


def define_processes(values: flags.FlagValues) -> None:
    """Flags of one process among several, which all get the same others."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT where the first of several processes listens, or auto (Slurm, Open MPI, "
        "Kubernetes, TPU); without --mesh they spread by data",
        flag_values=values,
    )
    flags.DEFINE_integer("processes", None, "how many there are", flag_values=values, lower_bound=1)
    flags.DEFINE_integer(
        "process", None, "which one this is, from 0", flag_values=values, lower_bound=0
    )


def data_options(values: flags.FlagValues) -> dict[str, Any]:
    """The flags of `define_data`, as `fm.data.load.load` takes them."""
    columns = "text_column", "label_column", "target_column"
    names = ("data_dir", *columns, "label_field", "speaker_field")
    return {name: values[name].value for name in names}


def out(values: flags.FlagValues) -> pathlib.Path:
    """The output folder.

    Raises:
      UserError: none is named: the empty path is the folder one is in.
    """
    if not values["out"].value.strip():
        raise UserError(f"--out={values['out'].value}: takes the name of a folder")
    return expand_path(values["out"].value)


def weights(flag: str, text: str | None, names: Sequence[str]) -> dict[str, float]:
    """Weights by name out of a flag like `digits:1,photos:2`, 1 where none is given."""
    found = dict.fromkeys(names, 1.0)
    for part in text.split(",") if text else ():
        name, _, weight = part.rpartition(":")
        if name not in found or not re.fullmatch(NUMBER, weight) or not float(weight):
            raise UserError(
                f"{flag}={text}: takes weights above 0 of {', '.join(names)}, such as {names[0]}:2"
            )
        found[name] = float(weight)
    return found
