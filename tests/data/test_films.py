import numpy as np
import pytest
from PIL import Image

from fm.data import clips, films, sources
from fm.data.media import Form, Video
from fm.errors import UserError

RNG = np.random.default_rng(0)
FORM = Form((8, 8, 8, 1), 8.0)


def noise(frames=8, size=8, channels=1):
    return RNG.integers(0, 256, (frames, size, size, channels), np.uint8)


def animated(path, clip, form="GIF", rate=8.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(clips.animation(clip, rate, scale=1, form=form))
    return clip


def frames(folder, clip, ending="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(clip):
        Image.fromarray(frame[..., 0]).save(folder / f"frame_{number}.{ending}")
    return clip


def film(path, clip, **options):
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in clip:
            picture = av.VideoFrame.from_ndarray(frame.repeat(3, axis=-1), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return clip


def by_class(folder, write=lambda path, clip: animated(path.with_suffix(".gif"), clip), count=4):
    return {
        name: [write(folder / name / str(number), noise()) for number in range(count)]
        for name in ("fall", "rise")
    }


@pytest.mark.parametrize(
    "write",
    [
        lambda path, clip: animated(path.with_suffix(".gif"), clip),
        lambda path, clip: animated(path.with_suffix(".png"), clip, "PNG"),
        frames,
    ],
    ids=["gif", "apng", "folders of frames"],
)
def test_clips_by_class(tmp_path, write, capsys):
    written = by_class(tmp_path, write)
    dataset = sources.load(str(tmp_path))
    assert dataset.modality == "video" and dataset.classes == ("fall", "rise")
    assert dataset.info["shape"] == [8, 8, 8, 1] and dataset.info["rate"] == 8
    expected = {
        (clip.tobytes(), number)
        for number, name in enumerate(dataset.classes)
        for clip in written[name]
    }
    found = {
        (clip.tobytes(), label)
        for split in (dataset.train, dataset.test)
        for clip, label in zip(split.clips(range(len(split))), split.labels, strict=True)
    }
    assert found == expected
    said = "8 of 8 clips are folders of frames, taken to be 8 frames/s"
    assert (said in capsys.readouterr().err) == (write is frames)


def test_a_film_is_decoded(tmp_path):
    levels = np.arange(16, dtype=np.uint8)[:, None, None, None] * 15
    clip = film(tmp_path / "a.mp4", np.broadcast_to(levels, (16, 32, 32, 1)))
    read = films.read(tmp_path / "a.mp4")
    assert read.seconds == pytest.approx(2) and read.timed
    found = Video().to_array(read, Form((8, 32, 32, 1), 8.0))
    # Compression moves a grey level a little; the 8 frames are those in the middle.
    np.testing.assert_allclose(found[:, 0, 0, 0], clip[4:12, 0, 0, 0], atol=4)


@pytest.mark.parametrize(
    ("lasting", "expected"),
    [
        ([1 / 8] * 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([1 / 4] * 4, [0, 0, 1, 1, 2, 2, 3, 3]),
        ([1 / 25] * 75, [26, 29, 32, 35, 39, 42, 45, 48]),
        ([1 / 8] * 3, [0, 1, 2, 2, 2, 2, 2, 2]),
        ([0.5, 0.1, 0.4], [0, 0, 0, 0, 1, 2, 2, 2]),
    ],
)
def test_frames_are_those_on_show(lasting, expected):
    assert films.sampled(np.cumsum(lasting), 8, 8.0).tolist() == expected


def test_what_is_changed_is_said(tmp_path, capsys):
    by_class(tmp_path)
    animated(tmp_path / "fall" / "long.gif", noise(20))
    animated(tmp_path / "fall" / "short.gif", noise(3))
    animated(tmp_path / "fall" / "large.gif", noise(size=12))
    assert sources.load(str(tmp_path)).info["shape"] == [8, 32, 32, 1]
    said = capsys.readouterr().err
    assert "1 of 11 clips are cut to the 1.00 s in their middle" in said
    assert "1 of 11 clips stand still after their end" in said
    assert "11 of 11 clips are resized to 32x32 pixels" in said


def _one_frame(folder):
    Image.fromarray(noise()[0, ..., 0]).save(folder / "fall" / "bad.gif")


def _one_picture(folder):
    frames(folder / "fall" / "bad", noise(1))


def _cut_off(folder):
    path = folder / "fall" / "bad.gif"
    animated(path, noise())
    path.write_bytes(path.read_bytes()[:-200])


def _cut_between_frames(folder):
    path = folder / "fall" / "bad.gif"
    animated(path, noise())
    path.write_bytes(path.read_bytes()[:-1])


def _sizes(folder):
    frames(folder / "fall" / "bad", noise(4))
    Image.fromarray(noise(size=9)[0, ..., 0]).save(folder / "fall" / "bad" / "frame_4.png")


def _broken_frame(folder):
    frames(folder / "fall" / "bad", noise(4))
    path = folder / "fall" / "bad" / "frame_2.png"
    path.write_bytes(path.read_bytes()[:60])


def _empty(folder):
    (folder / "fall" / "bad").mkdir()


def _cut_film(folder):
    path = folder / "fall" / "bad.mp4"
    film(path, np.zeros((8, 32, 32, 1), np.uint8))
    path.write_bytes(path.read_bytes()[:-20])


def _no_film(folder):
    pytest.importorskip("av")
    (folder / "fall" / "bad.mp4").write_bytes(b"this is not a film" * 9)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_one_frame, r"mixes clips and images.*fall/bad\.gif is among the images; a clip has two"),
        (_one_picture, "fall/bad is a broken clip: it has 1 frame; a clip needs two or more"),
        (_cut_off, r"fall/bad\.gif is a broken clip: it is cut short"),
        (_cut_between_frames, r"fall/bad\.gif is a broken clip: it is cut short after 8 frames"),
        (_sizes, r"fall/bad is .* frame_0\.png of 8x8 and frame_4\.png of 9x9"),
        (_broken_frame, r"fall/bad is a broken clip: frame_2\.png"),
        (_empty, "fall/bad is empty"),
        (_cut_film, r"fall/bad\.mp4 is a broken clip: it is cut short: \d of 8 frames"),
        (_no_film, r"fall/bad\.mp4 is a broken clip: it cannot be decoded"),
    ],
)
def test_errors(tmp_path, make, expected):
    by_class(tmp_path)
    make(tmp_path)
    with pytest.raises(UserError, match=expected) as raised:
        sources.load(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_without_the_decoder_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setattr(films.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'a\.mp4 needs PyAV to be decoded: pip install "fm\[v'):
        films.read(tmp_path / "a.mp4")
