"""A modality registered from outside `fm` goes the whole way from files to patches."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fm.data.decontamination import find_duplicates
from fm.data.load import load
from fm.data.media import (
    MODALITIES,
    BaselineFeatureSpec,
    DuplicateRule,
    MediaSpec,
    Modality,
    ModalityCodec,
    Patching,
    PatchLayout,
    get_modality,
    layout_of,
    register_modality,
)
from fm.errors import UserError
from fm.evaluation.baselines import ClassicalFamily, Examples, FeatureStore, members_of

LENGTH = 12


class SeriesCodec(ModalityCodec):
    """Sensor readings: `.npy` files, float32 [time, channels]."""

    dtype = np.float32
    extensions = (".npy",)
    preview_extension = "csv"

    def open(self, path):
        try:
            return np.load(path, allow_pickle=False)
        except ValueError as error:
            raise OSError(str(error)) from error

    def measure(self, opened):
        return opened.shape

    def common_spec(self, measures):
        return MediaSpec((LENGTH, measures[0][1]), 1.0)

    def describe_changes(self, measures, spec):
        return [f"{sum(length > LENGTH for length, _ in measures)} series are cut"]

    def to_array(self, opened, spec):
        return opened[:LENGTH].astype(np.float32)

    def tfds_feature(self, spec):
        return tfds.features.Tensor(shape=spec.shape, dtype=np.float32)

    def encode(self, array):
        return array

    def accepts_feature(self, feature):
        return type(feature) is tfds.features.Tensor and feature.np_dtype == np.float32

    def declared_spec(self, feature, rate):
        return MediaSpec(tuple(feature.shape), rate)

    def decode(self, stored, rate):
        return stored

    def encode_preview(self, array, rate):
        buffer = io.BytesIO()
        np.savetxt(buffer, array)
        return buffer.getvalue()


class SeriesPatching(Patching):
    """Windows of a few readings."""

    num_axes = 1

    def patch_shape(self, shape, size):
        return (size or 3,)

    def patch_dim(self, layout):
        return layout.patch_shape[0] * layout.shape[1]

    def positions(self, layout):
        return np.arange(layout.shape[0] // layout.patch_shape[0], dtype=np.int32)[:, None]

    def to_patches(self, examples, layout):
        return examples.reshape(len(examples), -1, layout.patch_dim)

    def from_patches(self, patches, layout):
        return patches.reshape(-1, *layout.shape)

    def to_picture(self, example, layout):
        return np.rint(255 * example.T[..., None]).astype(np.uint8)


def equal_series(pretrain, test):
    pairs = [(i, j) for i, a in enumerate(pretrain) for j, b in enumerate(test) if (a == b).all()]
    return np.array(pairs, np.int64).reshape(-1, 2)


@pytest.fixture
def series():
    register_modality(
        Modality(
            name="series",
            noun="series",
            metric_unit="bits_per_dimension",
            duplicates=DuplicateRule("equal readings", equal_series),
            codec=SeriesCodec(),
            patching=SeriesPatching(),
            baseline=(
                BaselineFeatureSpec("means", lambda each, rate: each.mean(1), standardize=True),
            ),
        )
    )
    yield
    del MODALITIES["series"]


@pytest.mark.usefixtures("series")
def test_from_files_to_patches(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / ("low", "high")[number % 2]
        folder.mkdir(exist_ok=True)
        values = rng.random((LENGTH + number % 3, 2), np.float32) / 2 + number % 2 / 2
        np.save(folder / f"{number}.npy", values)
    data = load(str(tmp_path))
    assert data.modality == "series" and data.classes == ("high", "low")
    assert data.info["shape"] == [LENGTH, 2] and data.info["rate"] == 1
    assert "series are cut" in capsys.readouterr().err
    examples = np.asarray(data.train.inputs(range(len(data.train))))

    layout = layout_of(data.modality, data.info["shape"], data.info["rate"])
    assert layout == PatchLayout("series", (LENGTH, 2), (3,), 1.0)
    assert PatchLayout.from_dict(layout.to_dict()) == layout
    patches = layout.to_patches(examples)
    assert patches.shape == (len(examples), 4, layout.patch_dim) and layout.num_axes == 1
    np.testing.assert_array_equal(layout.from_patches(patches), examples)
    assert layout.to_picture(examples[0]).shape == (2, LENGTH, 1)
    codec = get_modality("series").codec
    assert codec.encode_preview(examples[0], 1.0).count(b"\n") == LENGTH

    found = find_duplicates(data.train, data.train, "series")
    assert found.duplicate_idx.tolist() == list(range(len(examples)))
    assert found.method == "equal readings"
    assert find_duplicates(data.train, data.test, "series").num_found == 0

    test = np.asarray(data.test.inputs(range(len(data.test))))
    store = FeatureStore(Examples(np.concatenate([examples, test]), 1.0))
    family = ClassicalFamily(members_of("series", unlabeled=False), store, 2)
    config = {"member": "means, logistic regression", "C": 10.0}
    train, asked = np.arange(len(examples)), len(examples) + np.arange(len(test))
    predicted, _ = family.predict(train, data.train.labels, 0, config, asked)
    assert (predicted == data.test.labels).all()


@pytest.mark.usefixtures("series")
def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.npy is a broken series"):
        load(str(tmp_path))


def test_unknown_modalities_and_text():
    with pytest.raises(UserError, match="unknown modality 'smell'; accepted: text, video"):
        get_modality("smell")
    with pytest.raises(UserError, match="text has no patches"):
        layout_of("text", (3,), None)
