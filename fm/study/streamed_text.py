"""Text that is too large for memory, as a data set to pretrain on: whether, and how, it streams."""

from __future__ import annotations

import pathlib
from typing import Any

from fm.data.readers import hf_datasets
from fm.data.readers.examples import TextFormat
from fm.data.streaming import corpus
from fm.data.streaming.sources import CannotStreamError, TextPlan, plan_text, text_size
from fm.errors import UserError
from fm.files import cache_dir, expand_path
from fm.progress_lines import say
from fm.study.config import Recipe
from fm.study.epochs import EpochSize
from fm.study.model_card import DataSource, public_name
from fm.study.pretraining import shares_rows
from fm.study.processing import Processor, load_or_train_tokenizer, text_processor
from fm.study.seen_examples import save_corpus_hashes

MODES = ("auto", "always", "never")
# Read into memory, text takes several times its size in each process.
MAX_BYTES_IN_MEMORY = 250_000_000
# Options of `fm.data.load.load` beside those of `TextFormat` that need all data in memory.
_IN_MEMORY = ("unlabeled", "validation", "test", "label_field", "speaker_field")


class StreamedText:
    """A corpus of text on disk: planned at once, scanned and tokenized when it is asked for.

    Attributes:
      name: as given by the user.
      plan: its files.
      fingerprint: digest of their content and of how they are read.
      modality: "text".
    """

    modality = "text"

    def __init__(self, name: str, plan: TextPlan):
        """Digests the files; see `fm.data.streaming.corpus.corpus_fingerprint`."""
        self.name, self.plan = name, plan
        self.fingerprint = corpus.corpus_fingerprint(plan)
        self._scanned: corpus.ScannedCorpus | None = None
        self._tokenized: corpus.TokenizedCorpus | None = None

    def scanned(self) -> corpus.ScannedCorpus:
        """Returns the corpus with what becomes of each document; reads all of it the first time."""
        if self._scanned is None:
            for line in self.plan.notices:
                say(f"{self.name}: {line}")
            self._scanned = corpus.scan_corpus(self.plan, self.fingerprint)
            say(f"{self.name}: {self._scanned.describe()}")
        return self._scanned

    def save_ids(self, out_dir: pathlib.Path) -> None:
        """Writes the ids of the corpus, see `fm.study.seen_examples`."""
        save_corpus_hashes(self.scanned().corpus_hashes(), out_dir)

    def build_processor(self, recipe: Recipe, out_dir: pathlib.Path) -> Processor:
        """Returns the processor; trains a tokenizer on a sample and tokenizes the corpus."""
        scanned = self.scanned()
        tokenizer = load_or_train_tokenizer(
            scanned.sample, recipe.vocab_size, out_dir, kind=recipe.tokenizer
        )
        self._tokenized = corpus.tokenize_corpus(
            scanned,
            out_dir / "tokenizer.json",
            seq_len=recipe.seq_len,
            share_rows=shares_rows(recipe.objective),
        )
        return text_processor(recipe, tokenizer)

    def epoch_size(self, recipe: Recipe) -> EpochSize:
        """Returns the size of a pass over the corpus, which is tokenized for it."""
        # The tokenizer is the one that a run trains, so that the rows are those of the run.
        self.build_processor(
            recipe, self.scanned().folder / f"{recipe.tokenizer}-{recipe.vocab_size}"
        )
        manifest = self.tokenized().manifest
        documents = sum(shard["documents"] for shard in manifest["shards"])
        return EpochSize(manifest["rows"], manifest["tokens"] + 2 * documents)

    def tokenized(self) -> corpus.TokenizedCorpus:
        """Returns the rows that `build_processor` has written."""
        assert self._tokenized is not None, "build_processor comes first"
        return self._tokenized

    def card_source(self) -> DataSource:
        """Returns what a model card says of the data."""
        return DataSource(
            name=public_name(self.name),
            use="pretraining",
            license="not stated: your own files",
            fingerprint=self.fingerprint,
        )


def open_streamed(name: str, mode: str, options: dict[str, Any]) -> StreamedText | None:
    """Returns a data set as text that streams, None if it is to be read into memory.

    Args:
      name: a file, folder, prepared TFDS data set or `hf:NAME`.
      mode: "always", "never", or "auto": over 250 MB of text stream if they can. A line says so,
        or why they cannot.
      options: of `fm.data.load.load`.

    Raises:
      UserError: it cannot stream and `mode` is "always".
    """
    if mode == "never":
        return None
    path = _path(name, options.get("data_dir"))
    if path is None:
        if mode == "always":
            raise UserError(
                f"--stream=always: {name} is no file, folder or prepared TFDS data set; built-in "
                "data sets fit in memory"
            )
        return None
    size = text_size(path)
    if mode == "auto" and size <= MAX_BYTES_IN_MEMORY:
        return None
    try:
        for flag in _IN_MEMORY:
            if options.get(flag) not in (None, ""):
                raise CannotStreamError(
                    f"--{flag}={options[flag]}: is for data that fits in memory"
                )
        form = {key: options[key] for key in options if hasattr(TextFormat, key)}
        plan = plan_text(path, TextFormat(**form))
    except CannotStreamError as error:
        if mode == "always":
            raise UserError(f"--stream=always: {name} cannot be streamed: {error}") from error
        say(f"{name}: {size / 1e6:,.0f} MB are read into memory, as they cannot stream: {error}")
        return None
    if mode == "auto":
        say(
            f"{name}: {plan.size / 1e6:,.0f} MB of text stream from disk, as over "
            f"{MAX_BYTES_IN_MEMORY / 1e6:,.0f} MB do; --stream=never reads them into memory"
        )
    return StreamedText(name, plan)


def _path(name: str, data_dir: str | None) -> pathlib.Path | None:
    """Returns the file or folder of a data set, None if it has none yet."""
    from fm.data.builders import BUILDERS

    if name in BUILDERS:
        return None
    if name.startswith(hf_datasets.PREFIX):
        return hf_datasets.fetch_dataset(name)
    path = expand_path(name)
    if path.exists():
        return path
    folder = (expand_path(data_dir) if data_dir else cache_dir() / "tfds") / name.replace(":", "/")
    found = sorted(folder.glob("**/dataset_info.json")) if name.strip("./~") else []
    return found[-1].parent if found else None
