"""The command line that all experiments share: parsing, one-line errors, exit codes, common flags.

Exit codes: 0 done (or help), 2 bad input, 130 interrupted and saved.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import io
import pathlib
import re
import shlex
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import flags

from fm import lock, self_test, xla_flags
from fm.data.patches import DEFAULT_IMAGE_SIZE, MAX_IMAGE_SIZE, check_image_size
from fm.errors import UserError
from fm.files import cache_dir, expand_path
from fm.parallel import distributed
from fm.parallel.mesh import MeshConfig, config_from_mesh, current_mesh, default_mesh, parse_mesh
from fm.progress_lines import phase
from fm.study.config import FURTHER_DATA_FIELDS
from fm.study.loading import datasets_read_once
from fm.training import runtime
from fm.training.failures import first_line, is_out_of_memory
from fm.training.signals import Interrupted, save_handlers
from fm.training.trackers import TENSORBOARD, TRACKERS, tracking

# Flags of fm 0.1, by the flag that replaced each.
RENAMED_FLAGS = {
    "accumulate": "grad_accum_steps",
    "budgets": "label_budgets",
    "cases": "scale",
    "coordinator": "coordinator_address",
    "early_stop": "early_stopping_patience",
    "features": "embedder",
    "given": "init_example",
    "imported": "model",
    "keep": "keep_fraction",
    "length": "seq_len",
    "max_tokens": "max_new_tokens",
    "only": "filter",
    "peer": "baseline",
    "pretrained": "model",
    "process": "process_id",
    "processes": "num_processes",
    "published_model": "model",
    "remat": "remat_policy",
    "shots": "num_fewshot",
    "studies": "ablations",
    "test_items": "max_test_items",
    "upstream": "out_of_domain_dataset",
    "validate_every": "eval_every",
    "what": "suite",
}
NUMBER = r"[0-9]+(\.[0-9]*)?|\.[0-9]+"
_PLACEHOLDERS = {
    "comma separated list of strings": "a,b,...",
    "int": "number",
}
_REPEATED = "repeat this option to specify a list of values"
_CLOSED_LOOP = "Event loop is closed"
_OUT_OF_MEMORY_ADVICE = "saved checkpoints are kept; use a smaller size or batch size"
_previous_unraisablehook = [sys.unraisablehook]

DefineFlags = Callable[[flags.FlagValues], None]
Main = Callable[[flags.FlagValues], None]


# Of signs that results are printed with.
_PLAIN = str.maketrans({"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "…": "..."})


def plain_characters(error: UnicodeError) -> tuple[str, int]:
    """Error handler of streams that cannot show every character: `-` for a minus sign.

    Others are escaped, as by "backslashreplace".
    """
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("fm_plain", plain_characters)


def run(
    name: str,
    doc: str | None,
    define: DefineFlags,
    main: Main,
    *,
    dry_run: Main | None = None,
    computes: bool = True,
    resumes: bool = True,
) -> None:
    """Parses the command line, runs the experiment and exits the process.

    Args:
      name: of the experiment, as in `python -m experiments.NAME`.
      doc: printed by --help above the flags.
      define: defines the experiment's flags.
      main: runs the experiment.
      dry_run: prints what would run instead, for --dry_run; by default the command and its first
        line.
      computes: whether JAX computes something; its self-test comes first then.
      resumes: whether the same command goes on after an interruption, or else begins again.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # terminals that cannot show every character
            stream.reconfigure(errors="fm_plain")
    options: dict[str, Any] = {"dry_run": dry_run, "computes": computes, "resumes": resumes}
    sys.exit(call(name, doc, define, main, sys.argv[1:], **options))


def call(
    name: str,
    doc: str | None,
    define: DefineFlags,
    main: Main,
    arguments: Sequence[str],
    *,
    dry_run: Main | None = None,
    computes: bool = True,
    resumes: bool = True,
) -> int:
    """Runs the experiment with the given arguments and returns the exit code; see `run`."""
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_boolean("help", False, "print this and exit", flag_values=values, short_name="h")
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "print what would run, in which order and about how long, and write nothing to --out",
        flag_values=values,
    )
    try:
        rest = values([name, *arguments])[1:]
        if values["help"].value:
            print(_help(name, doc, values))
            return 0
        if "file" in values:
            values["file"].value = [*values["file"].value, *rest]
        elif rest:
            raise UserError(f"{rest[0]!r} is not a flag; flags look like --name=value")
        configure_process()
        tracker = values["tracker"].value if "tracker" in values else None
        with (
            _interruptible(),
            device_context(values),
            datasets_read_once(),
            tracking(tracker),
        ):
            try:
                if computes:
                    self_test.check_reductions()
                # Whatever takes long, a log never stands still.
                lead = distributed.is_lead_process()
                with phase(name, quiet=True, has_bar=False, shown=lead):
                    if not values["dry_run"].value:
                        main(values)
                    elif dry_run is not None:
                        dry_run(values)
                    else:
                        _print_command(name, doc, values)
            finally:
                lock.release()
    except flags.Error as error:
        return _fail(_flag_error(error, values), 2)
    except UserError as error:
        return _fail(error, 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 2)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(f"out of memory ({first_line(error)}); {_OUT_OF_MEMORY_ADVICE}", 2)
    except (Interrupted, KeyboardInterrupt) as error:
        goes_on = "resumes" if resumes else "begins again"
        return _fail(str(error) or f"interrupted; the same command {goes_on}", 130)
    return 0


def is_dry_run(values: flags.FlagValues) -> bool:
    """Returns whether --dry_run is given."""
    return "dry_run" in values and bool(values["dry_run"].value)


def _print_command(name: str, doc: str | None, values: flags.FlagValues) -> None:
    """Prints what a command without stages of its own would do."""
    given = [values[each] for each in values if values[each].present and len(each) > 1]
    parts = [
        shlex.quote(line)
        for flag in given
        if flag.name != "dry_run"
        for line in flag.serialize().splitlines()
    ]
    print(f"would run: {' '.join(['fm', name, *parts])}")
    print((doc or "").strip().partition("\n")[0])
    where = f"Output: {values['out'].value}. " if "out" in values else ""
    print(f"{where}Only the flags were read; nothing else was checked.")


def configure_process() -> None:
    """Sets deterministic GPU operations, memory reuse and the compilation cache of this process."""
    xla_flags.request_deterministic_gpu_ops()
    runtime.keep_freed_memory()
    if sys.unraisablehook is not _unraisablehook:
        _previous_unraisablehook[:] = [sys.unraisablehook]
        sys.unraisablehook = _unraisablehook
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _unraisablehook(unraisable: sys.UnraisableHookArgs) -> None:
    # After a failed save TensorStore's remaining writes find Orbax's event loop closed. The failed
    # save has been reported already.
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == _CLOSED_LOOP):
        _previous_unraisablehook[0](unraisable)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turns SIGTERM and Ctrl-C into KeyboardInterrupt, in the main thread, which gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = signal.SIGINT, signal.SIGTERM
    restore = save_handlers(numbers)
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def device_context(values: flags.FlagValues) -> Iterator[None]:
    """Enters the mesh and joins the processes that the flags name."""

    def value(name: str) -> Any:
        return values[name].value if name in values else None

    # `plan` has --mesh for chips that are planned, not present.
    mesh = None if "chips" in values else value("mesh")
    config = None if mesh is None else parse_mesh(mesh)
    address = value("coordinator_address")
    count, index = value("num_processes"), value("process_id")
    if address is None and (count, index) != (None, None):
        raise UserError("--num_processes and --process_id need --coordinator_address=HOST:PORT")
    if address is not None:
        distributed.initialize(address, count, index)
        config = config or MeshConfig(data=jax.device_count())
    with default_mesh(config and config.build()):
        yield


def _flag_error(error: flags.Error, values: flags.FlagValues) -> str:
    """Returns absl's error in one line that says what the flag accepts."""
    text = str(error)
    if isinstance(error, flags.UnrecognizedFlagError):
        new = RENAMED_FLAGS.get(error.flagname)
        if new in values:
            return f"--{error.flagname} is now called --{new}"
        names = [f"--{name}" for name in sorted(values) if len(name) > 1]
        similar = difflib.get_close_matches(f"--{error.flagname}", names, 1, 0.8)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        return f"--{error.flagname} is not a flag{hint}; accepted are {', '.join(names)}"
    given = re.search(r"(--(\w+)(?:=.*?)?)(?:: |$)", text, re.DOTALL)
    if given is None or given[2] not in values:
        return text
    return f"{given[1]}: takes {_accepted(values[given[2]])}"


def _accepted(flag: flags.Flag) -> str:
    if isinstance(flag.parser, flags.EnumParser):
        return f"one of {', '.join(flag.parser.enum_values)}"
    if flag.boolean:
        return "true or false"
    return flag.parser.syntactic_help or "a text"


def _fail(error: object, code: int) -> int:
    print(f"error: {one_line(str(error))}", file=sys.stderr)
    return code


def one_line(text: str) -> str:
    """Returns the text as one line, with control and direction characters written as escapes."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def _help(name: str, doc: str | None, values: flags.FlagValues) -> str:
    usage = f"fm {name}   (or: python -m experiments.{name})"
    lines = [usage, "", textwrap.dedent(doc or "").strip(), "", "flags:"]
    for key in sorted(values):
        flag = values[key]
        if flag.name != key or key == "h":
            continue
        text = f"--{key}{'' if flag.boolean else f'={_placeholder(flag)}'}  {_description(flag)}"
        lines += textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent=" " * 6)
    return "\n".join(lines)


def _placeholder(flag: flags.Flag) -> str:
    """Returns what stands for a flag's value in --help."""
    if isinstance(flag.parser, flags.EnumParser):
        return "|".join(flag.parser.enum_values)
    kind = flag.flag_type().removeprefix("multi ")
    return _PLACEHOLDERS.get(kind, kind)


def _description(flag: flags.Flag) -> str:
    """Returns what --help says of a flag: its text without absl's additions, and its default."""
    text = flag.help or ""
    if isinstance(flag.parser, flags.EnumParser):
        text = text.removeprefix(f"<{'|'.join(flag.parser.enum_values)}>: ")
    text = " ".join(text.split()).removesuffix(_REPEATED).rstrip("; ")
    if flag.default in (None, False, "", []):
        return text
    listed = isinstance(flag.default, list)
    default = ", ".join(flag.default) if listed else flag.default_as_str.strip("'")
    return f"{text} (default {default})"


def define_out(values: flags.FlagValues, default: str) -> None:
    """Defines --out, the folder for all output."""
    flags.DEFINE_string("out", default, "folder for all output", flag_values=values)


def define_files(values: flags.FlagValues, text: str) -> None:
    """Defines --file, several times or without its name: `a.csv b.csv` is `--file=a.csv ...`."""
    values.set_gnu_getopt(True)  # flags may follow the files
    flags.DEFINE_multi_string("file", [], text, flag_values=values)


def define_encoding(values: flags.FlagValues) -> None:
    """Defines --encoding, of text files."""
    text = "encoding of text files, such as cp1252, utf-16, gb18030 or shift_jis"
    flags.DEFINE_string("encoding", "utf-8", text, flag_values=values)


def define_data(values: flags.FlagValues) -> None:
    """Defines the flags that say where data lies and how to read it."""
    for name, default, text in (
        ("data_dir", None, "folder of prepared TFDS data sets; default: the user's cache folder"),
        ("text_column", "text", "column, key or TFDS feature of the text"),
        (
            "label_column",
            "label",
            "column, key or TFDS feature of the label; several, such as sport,politics, are 0/1 "
            "columns of a label set; empty for none",
        ),
        (
            "label_separator",
            "",
            "separates the classes of a label set in --label_column, such as ; (lists in .jsonl "
            "and .parquet files need none)",
        ),
        (
            "value_column",
            "",
            "column, key or TFDS feature of a number to predict, instead of a label",
        ),
        ("target_column", "", "column or key of a text to generate, instead of a label"),
        ("second_text_column", "", "column or key of the second text of a pair"),
        (
            "file_column",
            "",
            "column or key of the image, sound, clip or .txt file that is the input, relative to "
            "the table's folder",
        ),
        (
            "id_column",
            "",
            "column, key or TFDS feature of the id of an example, for predictions; default: file "
            "and row, or the path of a media file",
        ),
        (
            "group_column",
            "",
            "column, key or TFDS feature of a group, such as the author: its examples stay in one "
            "split, and intervals take them together",
        ),
        (
            "unlabeled",
            "",
            "file or folder of further unlabeled examples to pretrain on; several separated by "
            "commas (rows of --dataset with an empty label are unlabeled, too)",
        ),
        (
            "validation",
            "",
            "file or folder of further labeled examples: they join the training examples, as "
            "settings are chosen on parts of each seed's own labels; without any test split they "
            "are the test split",
        ),
        ("test", "", "file or folder that is the test split; default: 20% of the labeled examples"),
        (
            "item_group",
            "",
            "column, key or TFDS feature of the group of an example, such as its author, for "
            "intervals by group alone, not for splits; default: --group_column, the speaker of "
            "--speaker_field, or a built-in data set's own",
        ),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    define_encoding(values)
    flags.DEFINE_integer(
        "image_size",
        DEFAULT_IMAGE_SIZE,
        "largest side of images and frames of clips in pixels; images of one size up to this keep "
        f"it, others become squares of it; a multiple of 8, at most {MAX_IMAGE_SIZE}",
        flag_values=values,
    )
    for name, text in (
        ("label_field", "index of the label in file names: 0 reads 7 from 7_george_3.wav"),
        (
            "speaker_field",
            "index of the speaker in file names; each speaker stays in one split",
        ),
    ):
        flags.DEFINE_integer(name, None, text, flag_values=values, lower_bound=0)


def define_mesh(values: flags.FlagValues) -> None:
    """Defines --mesh; see `fm.parallel.mesh`."""
    flags.DEFINE_string(
        "mesh",
        None,
        "devices to spread the model and its batches over, by the axes data, fsdp and tensor, "
        "such as data:2,fsdp:4; default: one device",
        flag_values=values,
    )


def define_tracker(values: flags.FlagValues) -> None:
    """Defines --tracker; see docs/tracking.md."""
    flags.DEFINE_enum(
        "tracker",
        TENSORBOARD,
        list(TRACKERS),
        "what shows the metrics of pretraining besides the TensorBoard events that are always "
        "written; needs its library",
        flag_values=values,
    )


def check_divisible(rows: int, what: str) -> None:
    """Raises UserError unless the current mesh can split `rows` rows of a batch evenly."""
    mesh = current_mesh()
    shards = 1 if mesh is None else config_from_mesh(mesh).batch_shards
    if rows % shards:
        raise UserError(
            f"{what}: must be a multiple of data x fsdp = {shards} on this mesh; or use the "
            "tensor axis"
        )


def define_processes(values: flags.FlagValues) -> None:
    """Defines the flags of one process among several, which all get the same other flags."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT where the first of several processes listens, or auto (Slurm, Open MPI, "
        "Kubernetes, TPU); without --mesh the batch is split over all devices",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "number of processes", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer(
        "process_id", None, "index of this process, from 0", flag_values=values, lower_bound=0
    )


def data_options(values: flags.FlagValues) -> dict[str, Any]:
    """Returns the flags of `define_data` as keyword arguments of `fm.data.load.load`.

    Flags of `FURTHER_DATA_FIELDS` that are not given are left out.

    Raises:
      UserError: --image_size is out of range.
    """
    check_image_size(values["image_size"].value)
    names = ("data_dir", "text_column", "label_column", "target_column", "encoding", "item_group")
    names += ("image_size", "label_field", "speaker_field")
    given = [name for name in FURTHER_DATA_FIELDS if values[name].value]
    return {name: values[name].value for name in (*names, *given)}


def check_one_dataset(values: flags.FlagValues, names: Sequence[str]) -> None:
    """Raises UserError if files beside one data set are given for several."""
    for flag in ("unlabeled", "validation", "test"):
        if values[flag].value and len(names) > 1:
            raise UserError(
                f"--{flag}={values[flag].value}: is for one data set, not for {', '.join(names)}"
            )


def out_dir(values: flags.FlagValues) -> pathlib.Path:
    """Returns the folder of --out.

    Raises:
      UserError: the flag is empty.
    """
    if not values["out"].value.strip():
        raise UserError(f"--out={values['out'].value}: takes the name of a folder")
    return expand_path(values["out"].value)


def given_data_flags(values: flags.FlagValues) -> dict[str, Any]:
    """Returns those flags of `define_data` that are on the command line, for a next command."""
    given = {name: values[name].value for name in data_options(values) if values[name].present}
    return {
        name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()
    }


def print_next(purpose: str, experiment: str, **given: object) -> None:
    """Prints the command that goes on from a finished run, as the run's last line.

    Args:
      purpose: what it is for, such as "label new files".
      experiment: name of the command, as in `fm NAME`.
      **given: its flags. A word in capitals, such as FILE, stands for what the user fills in.
    """
    parts = [f"--{flag}={shlex.quote(str(value))}" for flag, value in given.items()]
    command = " ".join(["fm", experiment, *parts])
    print(one_line(f"next, to {purpose}: {command}"))


def parse_weights(flag: str, text: str | None, names: Sequence[str]) -> dict[str, float]:
    """Returns weights by name from a flag such as `digits:1,photos:2`; 1 for names left out.

    Raises:
      UserError: a name is unknown, or a weight is not a number above 0.
    """
    weights = dict.fromkeys(names, 1.0)
    for part in text.split(",") if text else ():
        name, _, weight = part.rpartition(":")
        if name not in weights or not re.fullmatch(NUMBER, weight) or not float(weight):
            raise UserError(
                f"{flag}={text}: takes weights above 0 for {', '.join(names)}, such as {names[0]}:2"
            )
        weights[name] = float(weight)
    return weights


def parse_counts(flag: str, texts: Sequence[str]) -> tuple[int, ...]:
    """Returns the ascending positive integers of a flag such as `20,100`.

    Raises:
      UserError: there are none, or one is not a whole number above 0.
    """
    if not texts or not all(re.fullmatch(r" *0*[1-9][0-9]{0,8} *", text) for text in texts):
        raise UserError(f"{flag}={','.join(texts)}: takes whole numbers above 0, such as 20,100")
    return tuple(sorted({int(text) for text in texts}))
