import io
import pathlib
import socket
import subprocess

import numpy as np
import pytest
from PIL import Image

from fm.data.load import load
from fm.data.media import MediaSpec, image, layout_of, video, video_decoding
from fm.data.media.video import VideoCodec, pixel_and_motion_features
from fm.errors import UserError

RNG = np.random.default_rng(0)
FORM = MediaSpec((8, 8, 8, 1), 8.0)


def noise(frames=8, size=8, channels=1):
    return RNG.integers(0, 256, (frames, size, size, channels), np.uint8)


def animated(path, clip, form="GIF", rate=8.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(video.encode_animation(clip, rate, scale=1, image_format=form))
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
    dataset = load(str(tmp_path))
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
    said = "8 of 8 clips are folders of frames, read at 8 frames/s"
    assert (said in capsys.readouterr().err) == (write is frames)


def test_a_film_is_decoded(tmp_path):
    levels = np.arange(16, dtype=np.uint8)[:, None, None, None] * 15
    clip = film(tmp_path / "a.mp4", np.broadcast_to(levels, (16, 32, 32, 1)))
    read = video_decoding.read_middle_frames(tmp_path / "a.mp4")
    assert read.duration == pytest.approx(2) and read.has_timestamps
    found = VideoCodec().to_array(read, MediaSpec((8, 32, 32, 1), 8.0))
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
    assert video_decoding.sample_frame_idx(np.cumsum(lasting), 8, 8.0).tolist() == expected


def test_what_is_changed_is_said(tmp_path, capsys):
    by_class(tmp_path)
    animated(tmp_path / "fall" / "long.gif", noise(20))
    animated(tmp_path / "fall" / "short.gif", noise(3))
    animated(tmp_path / "fall" / "large.gif", noise(size=12))
    assert load(str(tmp_path)).info["shape"] == [8, 32, 32, 1]
    said = capsys.readouterr().err
    assert "1 of 11 clips are cut to the 1.00 s in their middle" in said
    assert "1 of 11 clips repeat their last frame" in said
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
        load(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_without_the_decoder_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setattr(video_decoding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'a\.mp4 needs PyAV to be decoded: pip install "fm\[v'):
        video_decoding.read_middle_frames(tmp_path / "a.mp4")


LISTS = {
    "another player's": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
    "of files": "ffconcat version 1.0\nfile other.mkv\n",
    "a stream": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("what", LISTS)
@pytest.mark.parametrize("ending", [".mp4", ".avi", ".mkv"])
def test_a_film_that_is_a_list_fetches_and_opens_nothing(tmp_path, monkeypatch, what, ending):
    film(tmp_path / "other.mkv", noise(size=32))
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        text = LISTS[what].format(url=f"http://127.0.0.1:{port}/x.ts", port=port)
        (tmp_path / f"list{ending}").write_text(text)
        with pytest.raises(OSError, match="cannot be decoded"):
            video_decoding.read_middle_frames(tmp_path / f"list{ending}")
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("name", ["http:/x.mkv", "concat:a|b.mkv", "pipe:0.mkv", "a%d.mkv"])
def test_a_film_may_be_called_as_one_likes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "whole.mkv", noise(size=32))
    path = pathlib.Path(name)
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "whole.mkv").rename(path)
    assert len(video_decoding.read_middle_frames(path).frames) == video_decoding.NUM_FRAMES


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_pictures_are_handed_to_no_program(tmp_path, monkeypatch):
    def run(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", run)
    monkeypatch.setattr(subprocess, "Popen", run)
    by_class(tmp_path)
    for name in ("a.png", "a.gif", "a.jpg", "a.tif"):
        (tmp_path / "fall" / name).write_bytes(POSTSCRIPT)
        assert not video_decoding.is_animated_image(tmp_path / "fall" / name)
        with pytest.raises(OSError, match="it is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"):
            image.open_image(POSTSCRIPT)
        (tmp_path / "fall" / name).unlink()


@pytest.mark.parametrize(
    ("form", "channels", "lasting"), [("GIF", 1, 120), ("PNG", 3, 125), ("WEBP", 3, 125)]
)
def test_animations_play_what_was_given(form, channels, lasting):
    clip = RNG.integers(0, 256, (3, 4, 6, channels), np.uint8)
    played = Image.open(io.BytesIO(video.encode_animation(clip, 8.0, scale=2, image_format=form)))
    assert played.format == form and played.n_frames == 3 and played.info["loop"] == 0
    for number, frame in enumerate(clip.repeat(2, axis=1).repeat(2, axis=2)):
        played.seek(number)
        played.load()
        assert played.info["duration"] == lasting
        shown = np.asarray(played.convert("L" if channels == 1 else "RGB"))
        np.testing.assert_array_equal(shown.reshape(frame.shape), frame)


def test_other_animations_are_refused():
    with pytest.raises(UserError, match="GIF, PNG or WEBP, not MP4"):
        video.encode_animation(np.zeros((2, 4, 4, 1), np.uint8), 8, image_format="MP4")


def transparent_frames():
    """Black dots, each somewhere else, on nothing: gray and opacity [frames, 8, 8, 2]."""
    clip = np.zeros((8, 8, 8, 2), np.uint8)
    clip[np.arange(8), np.arange(8), 3, 1] = 255
    return clip


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "folder"])
def test_transparent_clips_keep_their_shapes(tmp_path, form):
    pictures = [Image.fromarray(frame).convert("RGBA") for frame in transparent_frames()]
    path = tmp_path / f"clip.{form.lower()}"
    if form == "folder":
        path.mkdir()
        for number, picture in enumerate(pictures):
            picture.save(path / f"{number}.png")
    else:
        options = {"lossless": True} if form == "WEBP" else {"disposal": 2}
        pictures[0].save(
            path, form, save_all=True, append_images=pictures[1:], duration=125, **options
        )
    codec = VideoCodec()
    opened = codec.open(path)
    measure = codec.measure(opened)
    spec = codec.common_spec([measure])
    assert spec.shape == (8, 8, 8, 1) and spec.background == 255
    expected = np.where(transparent_frames()[..., 1] > 0, 0, 255)
    np.testing.assert_array_equal(codec.to_array(opened, spec)[..., 0], expected)
    assert "1 of 1 clips are transparent in places and put on white" in codec.describe_changes(
        [measure], spec
    )


@pytest.mark.parametrize(
    ("image_size", "size", "tubelet"),
    [
        (32, (32, 24), 4),
        (64, (64, 64), 8),
        (64, (48, 64), 8),
        (256, (256, 256), 32),
        (16, (16,) * 2, 4),
    ],
)
def test_larger_frames_are_kept_in_larger_tubelets(image_size, size, tubelet):
    codec = VideoCodec().with_image_size(image_size)
    measures = [codec.measure(video_decoding.video_from_array(noise(8, 300), 8.0))]
    assert codec.common_spec(measures).shape == (8, image_size, image_size, 1)
    assert codec.shrunk(measures, codec.common_spec(measures)) == {
        "from": [300, 300],
        "to": [image_size, image_size],
        "count": 1,
    }
    clips = np.zeros((1, 8, *size, 1), np.uint8)
    own = [codec.measure(video_decoding.video_from_array(clips[0], 8.0))]
    assert codec.common_spec(own).shape == clips.shape[1:]
    layout = layout_of("video", clips.shape[1:], 8.0)
    assert layout.patch_shape == (2, tubelet, tubelet)
    assert layout.to_patches(clips).shape[1] <= 4 * 64


@pytest.mark.parametrize("size", [(30, 30), (17, 19), (4, 8)])
def test_frames_that_no_tubelet_fits_are_resized(size):
    measure = VideoCodec().measure(
        video_decoding.video_from_array(np.zeros((8, *size, 1), np.uint8), 8.0)
    )
    assert VideoCodec().common_spec([measure]).shape == (8, 32, 32, 1)


@pytest.mark.parametrize(
    ("name", "is_clip"),
    [
        (lambda n: f"cam1_{n:03}_v2.png", True),
        (lambda n: f"frame{3 * n}.{'PNG' if n == 0 else 'png'}", True),
        (lambda n: f"{'Frame' if n else 'frame'}_{n}.png", True),
        (lambda n: f"{n}.png", True),
        (lambda n: f"frame_{n:04}_t{n * 0.125:.3f}.png", True),
        (lambda n: f"frame_{n:04}_t{n * 0.3:.3f}.png", False),  # 900 falls to 200
        (lambda n: f"frame_{n:04}_{n // 4}.png", True),
        (lambda n: f"2024{n:020}_1.png", True),
        (lambda n: f"{n % 2}_scene_{n}.{'jpg' if n == 3 else 'png'}", False),
        (lambda n: f"cam{n // 4}_{n % 4}.png", False),
        (lambda n: f"frame_{n}{'a' * (n == 3)}.png", False),
        (lambda n: f"frame_{'0' * (n % 2)}{n // 2}.png", False),
        (lambda n: f"frame_{n}.jpeg" if n == 3 else f"frame_{n}.png", True),
        (lambda n: f"frame_{'abcdefgh'[n]}.png", False),
    ],
)
def test_frames_are_numbered_in_one_order(tmp_path, name, is_clip):
    clip = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None] * 30, (8, 8, 8))
    for number, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / name(number))
    assert video_decoding.is_frame_folder(tmp_path) == is_clip
    if is_clip:
        read = video_decoding.read_middle_frames(tmp_path)
        found = [int(np.asarray(frame)[0, 0]) for frame in read.frames]
        np.testing.assert_allclose(found, clip[:, 0, 0], atol=2)


def moving(label, count):
    """Noise that goes right (0) or left (1) by a pixel a frame, over an edgeless plane."""
    scene = RNG.integers(0, 256, (count, 9, 10, 1), np.uint8)
    way = 1 if label == 0 else -1
    return np.stack([np.roll(scene, way * time, axis=2) for time in range(4)], axis=1)


def test_features_are_pixels_changes_and_misfits():
    clips = RNG.integers(0, 256, (3, 4, 9, 10, 1), np.uint8)
    clips[1] = moving(0, 1)[0]
    features = pixel_and_motion_features(clips)
    pixels, changes, misfits = np.split(features, [4 * 90, 7 * 90], axis=1)
    scaled = clips / 255
    np.testing.assert_allclose(pixels, scaled.reshape(3, -1), atol=1e-6)
    np.testing.assert_allclose(
        changes, np.abs(scaled[:, 1:] - scaled[:, :-1]).reshape(3, -1), atol=1e-6
    )
    expected = np.zeros((3, 5, 5))
    for down in range(-2, 3):
        for right in range(-2, 3):
            moved = np.roll(scaled[:, :-1], (down, right), (2, 3))
            error = np.square(moved - scaled[:, 1:])[:, :, 2:-2, 2:-2]
            expected[:, 2 - down, 2 - right] = error.mean((1, 2, 3, 4)) + 1e-4
    expected = 10 * (expected / expected.mean((1, 2), keepdims=True) - 1)
    np.testing.assert_allclose(misfits, expected.reshape(3, -1), atol=1e-3)
    assert divmod(int(misfits[1].argmin()), 5) == (2, 1), "it went right by one"


def test_a_still_clip_matches_whichever_way_it_is_moved():
    assert not pixel_and_motion_features(np.full((1, 4, 9, 10, 1), 7, np.uint8))[0, 7 * 90 :].any()


def test_frames_too_small_are_named():
    with pytest.raises(UserError, match="frames of 4x9 are too small"):
        pixel_and_motion_features(np.zeros((1, 4, 4, 9, 1), np.uint8))
