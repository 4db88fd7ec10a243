import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fm.data.media.video import pixel_and_motion_features
from fm.errors import UserError
from fm.evaluation.baselines import (
    cross_validate,
    first_sentences,
    fit,
    fit_free_features,
    hparam_grid,
    nearest_neighbor_targets,
)
from fm.evaluation.model_selection import make_folds

_RNG = np.random.default_rng(0)
WORDS = np.array([f"word{i}" for i in range(300)])


def documents(count=90, seed=0):
    """Reviews of made-up words, some of which lean to one of three labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    lean = np.zeros((3, 300))
    lean[np.arange(3).repeat(20), np.arange(60)] = 1.5
    chances = np.exp(lean - 0.01 * np.arange(300))
    texts = [
        " ".join(random.choice(WORDS, 60, p=chances[label] / chances[label].sum()))
        for label in labels
    ]
    return texts, labels


def reference(C):
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=C, max_iter=5000, tol=1e-4),
    )


def test_shared_counts_give_what_scikit_learn_gives_on_the_labelled_documents():
    texts, labels = documents()
    train, test = np.arange(40), np.arange(40, 90)
    counts = fit_free_features("text", texts)

    ours = fit("text", counts[train], labels[train], {"C": 10.0})
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    theirs_train = vectorizer.fit_transform(texts[:40])

    # Columns are in one order on both sides: alphabetical.
    assert ours.featurize(counts[train]).shape == theirs_train.shape
    np.testing.assert_allclose(
        ours.featurize(counts[test]).toarray(),
        vectorizer.transform(texts[40:]).toarray(),
        atol=1e-12,
    )
    theirs = reference(10.0).fit(texts[:40], labels[train])
    np.testing.assert_array_equal(ours.predict(counts[test]), theirs.predict(texts[40:]))


def test_documents_and_counts_give_the_same_predictions():
    texts, labels = documents()
    counts = fit_free_features("text", texts)
    from_counts = fit("text", counts[:40], labels[:40], {"C": 1.0}).predict(counts[40:])
    from_texts = fit("text", texts[:40], labels[:40], {"C": 1.0}).predict(texts[40:])
    np.testing.assert_array_equal(from_counts, from_texts)
    assert from_texts.dtype.kind == "i"
    assert np.mean(from_texts == labels[40:]) > 0.8, "chance is a third"


def test_text_cross_validation_refits_the_vocabulary_in_every_fold():
    texts, labels = documents(count=48)
    configs = hparam_grid("text", 3)
    cut = make_folds(labels, seed=0)
    found = cross_validate("text", fit_free_features("text", texts), labels, configs, cut)
    for config, trial in zip(configs, found, strict=True):
        right = 0
        for train, validation in cut:
            model = reference(config["C"]).fit([texts[i] for i in train], labels[train])
            right += np.sum(model.predict([texts[i] for i in validation]) == labels[validation])
        assert trial == {"config": config, "validation": right / len(labels)}


def test_text_without_words_is_named():
    with pytest.raises(UserError, match="none of the documents holds a word"):
        fit_free_features("text", ["a !", "?"])


def test_a_labelled_document_without_words_is_no_obstacle():
    texts, labels = documents()
    model = fit("text", ["?", *texts[:30]], np.append(0, labels[:30]), {"C": 1.0})
    assert model.predict(["!"]).shape == (1,)


def test_images_are_logistic_regression_on_pixels():
    digits = load_digits()
    pixels = (digits.images * 255 / 16).astype(np.uint8)
    train, test = slice(0, 200), slice(200, 600)
    ours = fit("image", pixels[train], digits.target[train], {"C": 1.0})
    theirs = LogisticRegression(C=1.0, max_iter=5000).fit(
        pixels[train].reshape(200, -1) / 255.0, digits.target[train]
    )
    expected = theirs.predict(pixels[test].reshape(400, -1) / 255.0)
    np.testing.assert_array_equal(ours.predict(pixels[test]), expected)
    # Floating pixels are already from 0 to 1.
    np.testing.assert_array_equal(
        fit("image", pixels[train] / 255.0, digits.target[train], {"C": 1.0}).predict(
            pixels[test] / 255.0
        ),
        expected,
    )
    assert np.mean(expected == digits.target[test]) > 0.8


def test_audio_features_are_standardized_on_the_labelled_clips():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = random.normal(size=(60, 5)) * [1, 10, 100, 1000, 1e4] + labels[:, None]
    ours = fit("audio", features[:40], labels[:40], {"C": 1.0}).predict(features[40:])
    scaler = StandardScaler().fit(features[:40])
    model = LogisticRegression(C=1.0).fit(scaler.transform(features[:40]), labels[:40])
    np.testing.assert_array_equal(ours, model.predict(scaler.transform(features[40:])))
    assert 0 < ours.mean() < 1


def test_sounds_are_told_by_what_they_are_and_when():
    random = np.random.default_rng(0)
    time = np.arange(4000) / 8000
    labels = np.arange(48) % 4
    # Rising, falling, high, low: the first two differ in order alone.
    ends = np.array([[300, 2500], [2500, 300], [2500, 2500], [300, 300]])[labels, :, None]
    pitch = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * time / 0.5
    pitch = pitch * random.uniform(0.8, 1.2, (48, 1))
    waves = np.sin(2 * np.pi * np.cumsum(pitch, axis=1) / 8000)
    waves = waves * random.uniform(500, 9000, (48, 1)) + random.normal(0, 20, (48, 4000))
    sounds = waves.astype(np.int16)
    model = fit("audio", sounds[:24], labels[:24], {"C": 0.1}, sample_rate=8000)
    assert np.mean(model.predict(sounds[24:]) == labels[24:]) > 0.9
    features = fit_free_features("audio", sounds, sample_rate=8000)
    assert features.shape == (48, 13 * 9) and np.isfinite(features).all()
    np.testing.assert_array_equal(fit_free_features("audio", features), features)
    again = fit("audio", features[:24], labels[:24], {"C": 0.1})
    np.testing.assert_array_equal(again.predict(features[24:]), model.predict(sounds[24:]))
    with pytest.raises(UserError, match="need their sample rate"):
        fit_free_features("audio", sounds)


def test_image_cross_validation_matches_fitting_by_hand():
    digits = load_digits()
    images, labels = digits.images[:60].astype(np.uint8), digits.target[:60]
    cut = make_folds(labels, seed=0)
    (trial,) = cross_validate("image", images, labels, [{"C": 0.1}], cut)
    right = sum(
        np.sum(
            fit("image", images[train], labels[train], {"C": 0.1}).predict(images[part])
            == labels[part]
        )
        for train, part in cut
    )
    assert trial["validation"] == right / sum(len(part) for _, part in cut)


@pytest.mark.parametrize("trials", [1, 2, 6, 11])
@pytest.mark.parametrize("modality", ["text", "image", "video", "audio"])
def test_grid_has_exactly_the_trials_asked_for(modality, trials):
    settings = [config["C"] for config in hparam_grid(modality, trials)]
    assert len(set(settings)) == trials
    assert settings == sorted(settings)


def test_grid_refuses_the_unknown():
    with pytest.raises(UserError, match=r"'smell'.*text, video, image, audio"):
        hparam_grid("smell", 6)
    with pytest.raises(UserError, match="at least 1, got 0"):
        hparam_grid("text", 0)


def moving(label, count):
    """Noise that goes right (0) or left (1) by a pixel a frame, over an edgeless plane."""
    scene = _RNG.integers(0, 256, (count, 9, 10, 1), np.uint8)
    way = 1 if label == 0 else -1
    return np.stack([np.roll(scene, way * time, axis=2) for time in range(4)], axis=1)


def test_features_are_pixels_changes_and_misfits():
    clips = _RNG.integers(0, 256, (3, 4, 9, 10, 1), np.uint8)
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


def test_the_baseline_tells_ways_apart_that_share_their_frames():
    clips = np.concatenate([moving(label, 40) for label in (0, 1)])
    labels = np.repeat([0, 1], 40)
    train = np.arange(80) % 2 == 0
    config = {"C": 0.01}
    prepared = fit_free_features("video", clips)
    fitted = fit("video", prepared[train], labels[train], config)
    assert np.mean(fitted.predict(prepared[~train]) == labels[~train]) == 1
    raw = fit("video", clips[train], labels[train], config)
    np.testing.assert_array_equal(raw.predict(clips[~train]), fitted.predict(prepared[~train]))


def test_frames_too_small_are_named():
    with pytest.raises(UserError, match="frames of 4x9 are too small"):
        pixel_and_motion_features(np.zeros((1, 4, 4, 9, 1), np.uint8))


def test_first_sentences():
    texts = ["One, e.g. this.  Two.", "No end\n\nNext", "What? Yes.", ""]
    assert first_sentences(texts) == ["One, e.g. this.", "No end", "What?", ""]


def test_nearest_targets():
    train = ["how to sort a long list", "open the file for reading", "the mean of an array"]
    found = nearest_neighbor_targets(
        train, ["s", "o", "m"], ["reading a file", "a mean value", "sort it"]
    )
    assert found == ["o", "m", "s"]


ALPHABETS = {
    "Chinese": "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出",
    "Japanese": "あいうえおかきくけこアイウエオカキクケコ日本語映画最高悪人生",
    "Korean": "가나다라마바사아자차카타파하거너더러머버서어저처커터퍼허",
    "Thai": "กขคงจฉชซญดตถทธนบปผฝพ",
    "Khmer": "កខគឃងចឆជឈញដឋឌឍណត",
    "Latin without spaces": "abcdefghijklmnopqrstuvwxyz",
}


@pytest.mark.parametrize("script", ALPHABETS)
def test_texts_without_spaces_are_told_apart(script):
    random = np.random.default_rng(0)
    characters = list(ALPHABETS[script])
    told = ["".join(random.choice(characters, 4)) for _ in range(8)]
    labels = np.arange(120) % 2
    texts = []
    for label in labels:
        parts = ["".join(random.choice(characters, 12)) for _ in range(4)]
        own = random.choice(told[4 * label : 4 * label + 4], 3)
        texts.append("".join(part + each for part, each in zip(parts, own, strict=False)) + "a")
    counts = fit_free_features("text", texts)
    fitted = fit("text", counts[:80], labels[:80], {"C": 100.0})
    assert np.mean(fitted.predict(counts[80:]) == labels[80:]) > 0.85
    answers = nearest_neighbor_targets(texts, texts, [texts[3][:-9]])
    assert answers == [texts[3]]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("这部电影很好。我喜欢。", "这部电影很好。"),
        ("「本当？！」と言った。次。", "「本当？！」と言った。"),
        ("यह अच्छा है। वह नहीं।", "यह अच्छा है।"),
        ("Это кино. Оно хорошее.", "Это кино."),
        ("이 영화는 좋다. 저 영화는 나쁘다.", "이 영화는 좋다."),
        ("هل هو جيد؟ نعم.", "هل هو جيد؟"),
        (
            "It cost 3.5 dollars, i.e. too much. Then it ended.",
            "It cost 3.5 dollars, i.e. too much.",
        ),
    ],
)
def test_sentences_end_in_every_script(text, first):
    assert first_sentences([text]) == [first]
