"""Clips of arcade games played at random; the label is the game. Needs the extra `arcade`.

The games run in the Arcade Learning Environment (`ale-py`, GPL-2.0), whose wheel holds their ROMs.
The ROMs belong to their owners, whatever the license of the wheel: this data set is only used when
requested by name, and neither ROMs nor clips are part of this package.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fm.data.prepare import BuiltinBuilder
from fm.data.splitting import array_digest, with_unique_keys
from fm.errors import UserError

GAMES = (
    *("asteroids", "boxing", "breakout", "freeway"),
    *("ms_pacman", "pong", "seaquest", "space_invaders"),
)
FRAMES, SIDE = 8, 32
# The console shows 60 frames/s; one in four is taken.
_FRAME_STEP = 4
RATE = 60 / _FRAME_STEP
CLIPS_PER_SESSION = 10
# Seeds of machine and player.
SESSIONS = {"train": range(12), "test": range(100, 104)}

_WARM_UP, _BETWEEN = (60, 240), 24
_HOLD = (4, 24)


class ArcadeClips(BuiltinBuilder):
    """Clips of arcade games played at random: video uint8 [8, 32, 32, 1], 15 frames/s; label: game.

    A player of random actions, each held for a while, plays 12 sessions of each game for training
    and 4 with other seeds for test; each gives 10 clips.
    """

    DESCRIPTION = (
        "Clips of Atari 2600 games played at random, 8 frames of 32x32 gray pixels at 15 frames/s, "
        "squeezed from 160x210."
    )
    CITATION = "Bellemare et al. (2013), The Arcade Learning Environment."
    LICENSE = "of the games: their owners' (the ROMs come in the wheel of ale-py)"
    FEATURES = {  # noqa: RUF012
        "video": tfds.features.Tensor(
            shape=(FRAMES, SIDE, SIDE, 1), dtype=np.uint8, encoding="bytes"
        ),
        "label": tfds.features.ClassLabel(names=GAMES),
    }
    METADATA = {"rate": RATE, "split": "by session"}  # noqa: RUF012

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_session_clips(seeds) for split, seeds in SESSIONS.items()}

    def _generate_session_clips(self, seeds: range) -> Iterator[tuple[str, dict]]:
        ale = _environment()
        clips = (
            (clip, game) for game in GAMES for seed in seeds for clip in _session(ale, game, seed)
        )
        return with_unique_keys(
            (array_digest(clip), {"video": clip, "label": game}) for clip, game in clips
        )


def _environment() -> Any:
    if importlib.util.find_spec("ale_py") is None:
        raise UserError('arcade_clips needs the games of ale-py: pip install "fm[arcade]"')
    ale = importlib.import_module("ale_py")
    importlib.import_module("ale_py.roms")
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    return ale


def _session(ale: Any, game: str, seed: int) -> Iterator[np.ndarray]:
    """Yields the clips of a game session, uint8 [FRAMES, SIDE, SIDE, 1]."""
    rng = np.random.default_rng([GAMES.index(game), seed])
    machine = ale.ALEInterface()
    machine.setInt("random_seed", seed + 1)
    machine.loadROM(ale.roms.get_rom_path(game))
    machine.reset_game()
    actions = machine.getMinimalActionSet()
    action, held = actions[0], 0

    def play(frames: int) -> None:
        nonlocal action, held
        for _ in range(frames):
            if not held:
                action, held = actions[rng.integers(len(actions))], int(rng.integers(*_HOLD))
            machine.act(action)
            held -= 1
            if machine.game_over():
                machine.reset_game()

    play(int(rng.integers(*_WARM_UP)))
    for _ in range(CLIPS_PER_SESSION):
        frames = []
        for _ in range(FRAMES):
            play(_FRAME_STEP - 1)
            before = machine.getScreenGrayscale()
            play(1)
            # Many games draw moving objects in alternating frames.
            frames.append(_downscale(np.maximum(before, machine.getScreenGrayscale())))
        yield np.stack(frames)[..., None]
        play(_BETWEEN)


def _downscale(screen: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(screen).resize((SIDE, SIDE), Image.Resampling.BOX))
