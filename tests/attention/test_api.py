"""Selection of an implementation, and the errors of a named one that cannot run."""

import logging
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask, api, attention, choose, cudnn, explain_choice, splash, tokamax
from fm.attention.api import IMPLEMENTATIONS, KERNELS_BY_PLATFORM, Implementation
from tests.attention.helpers_contract import Case, arrays, ints


def like(B=2, L=128, H=4, C=64, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((B, L, H, C), dtype)


SEGMENTED = Mask(q_segments=ints([0] * 128), kv_segments=ints([0] * 128))
CASES = {
    "cpu": ("cpu", like(), like(), {}, "xla_tiled", "cache"),
    "cpu, long": ("cpu", like(1, 8192, 5), like(1, 8192, 5), {}, "xla_tiled", "cache"),
    "cpu, narrow": (
        "cpu",
        like(L=8192),
        like(L=8192),
        {"mask": Mask(causal=True, window=512)},
        "xla_chunked",
        "window of 512",
    ),
    "cpu, wide": (
        "cpu",
        like(L=8192),
        like(L=8192),
        {"mask": Mask(causal=True, window=513)},
        "xla_tiled",
        "cache",
    ),
    "cpu, narrow both ways": (
        "cpu",
        like(L=8192),
        like(L=8192),
        {"mask": Mask(window=256, window_right=256)},
        "xla_chunked",
        "window of 512",
    ),
    "cpu, wide both ways": (
        "cpu",
        like(L=8192),
        like(L=8192),
        {"mask": Mask(window=256, window_right=257)},
        "xla_tiled",
        "cache",
    ),
    "cpu, narrow, anywhere": (
        "cpu",
        like(L=8192),
        like(L=8192),
        {"mask": Mask(causal=True, window=512, q_start=ints(1, 2))},
        "xla_tiled",
        "cache",
    ),
    "cpu, a cache": ("cpu", like(L=1), like(L=512), {}, "decode", "512 cached keys"),
    "cpu, 4 queries": ("cpu", like(L=4), like(L=512), {}, "decode", "512 cached keys"),
    "cpu, 5 queries": ("cpu", like(L=5), like(L=512), {}, "xla_tiled", "cache"),
    "cpu, no cache": ("cpu", like(L=4), like(L=4), {}, "xla_tiled", "cache"),
    "tpu": ("tpu", like(), like(), {"mask": Mask(causal=True)}, "splash", "kernel"),
    "tpu, softcap": ("tpu", like(), like(), {"softcap": 2.0}, "splash", "kernel"),
    "tpu, a cache": ("tpu", like(L=1), like(), {}, "decode", "128 cached keys"),
    "tpu, prefix": (
        "tpu",
        like(),
        like(),
        {"mask": Mask(causal=True, prefix=ints(1, 2))},
        "xla_tiled",
        "not splash: .*prefix",
    ),
    "tpu, prefix, long": (
        "tpu",
        like(L=16384),
        like(L=16384),
        {"mask": Mask(causal=True, prefix=ints(1, 2))},
        "xla_chunked",
        "1 GiB; not splash: .*prefix",
    ),
    "gpu": ("gpu", like(), like(), {"mask": Mask(causal=True)}, "cudnn", "kernel"),
    "gpu, float32": (
        "gpu",
        like(dtype=jnp.float32),
        like(dtype=jnp.float32),
        {},
        "xla_tiled",
        "not cudnn: .*float32",
    ),
    "gpu, segments": (
        "gpu",
        like(1),
        like(1),
        {"mask": SEGMENTED},
        "xla_tiled",
        "not cudnn: .*segments",
    ),
    "rocm": ("rocm", like(), like(), {}, "xla_tiled", "fit"),
    "rocm, one GiB": ("rocm", like(1, 8192, 4), like(1, 8192, 4), {}, "xla_tiled", "fit"),
    "rocm, more": ("rocm", like(1, 8192, 5), like(1, 8192, 5), {}, "xla_chunked", "1 GiB"),
}


@pytest.fixture
def library_kernels_only(monkeypatch):
    """Leaves only library kernels in the selection."""
    monkeypatch.setitem(KERNELS_BY_PLATFORM, "gpu", ("cudnn",))


@pytest.mark.usefixtures("library_kernels_only")
class TestChoice:
    @pytest.mark.parametrize("which", CASES)
    def test_name_and_reason(self, which):
        on, q, k, more, name, words = CASES[which]
        chosen = explain_choice(q, k, platform=on, **more)
        assert chosen.name == choose(q, k, platform=on, **more) == name
        assert re.search(words, chosen.reason)

    def test_the_selected_implementation_can_run(self):
        for on, q, k, more, name, _ in CASES.values():
            mask, softcap = more.get("mask", Mask()), more.get("softcap")
            assert IMPLEMENTATIONS[name].unsupported_reason(q, k, k, mask, softcap, on) is None

    def test_the_first_supported_kernel_is_selected(self, monkeypatch):
        mine = Implementation(cudnn.attend, lambda q, k, v, mask, softcap, on: None)
        monkeypatch.setitem(IMPLEMENTATIONS, "ours", mine)
        monkeypatch.setitem(KERNELS_BY_PLATFORM, "gpu", ("cudnn", "ours"))
        assert choose(like(), like(), platform="gpu") == "cudnn"
        assert choose(like(), like(), softcap=3.0, platform="gpu") == "ours"


@pytest.mark.parametrize(
    ("capability", "installed", "C", "name"),
    [
        ("9.0", True, 64, "mosaic_gpu"),
        ("9.0", False, 32, "mosaic_gpu"),
        ("8.0", True, 64, "tokamax"),
        ("8.0", False, 64, "pallas_triton"),
        ("8.6", False, 32, "pallas_triton"),
        ("10.0", True, 128, "tokamax"),
        ("12.0", True, 64, "tokamax"),
        ("7.5", True, 64, "xla_tiled"),
    ],
)
def test_packed_rows_reach_a_kernel_on_every_gpu_since_ampere(
    capability, installed, C, name, monkeypatch
):
    client = types.SimpleNamespace(platform_version="cuda 13000")
    device = types.SimpleNamespace(compute_capability=capability, client=client)
    monkeypatch.setattr(jax, "devices", lambda platform=None: [device])
    found = object() if installed else None
    monkeypatch.setattr(tokamax.importlib.util, "find_spec", lambda name: found)
    packed = Mask(
        causal=True,
        q_segments=SEGMENTED.q_segments,
        kv_segments=SEGMENTED.kv_segments,
        packed=True,
    )
    assert choose(like(1, C=C), like(1, C=C), packed, platform="gpu") == name


def test_each_choice_is_logged_once(caplog):
    api._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="fm.attention"):
        for length in (128, 128, 256):
            choose(like(L=length), like(L=length), platform="cpu")
        choose(like(L=1), like(), platform="cpu")
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "attention by xla_tiled: " in caplog.text and "attention by decode: " in caplog.text


@pytest.mark.usefixtures("library_kernels_only")
def test_falling_to_plain_xla_on_an_accelerator_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(api, "_warned", set())
    wide, narrow = like(dtype=jnp.float32), like(C=32, dtype=jnp.float32)
    choose(wide, wide, platform="cpu")
    choose(like(), like(), platform="gpu")  # a kernel
    choose(like(L=1), like(), platform="gpu")  # reads a cache
    assert capsys.readouterr().err == ""
    for q in (wide, wide, narrow):
        assert choose(q, q, platform="gpu") == "xla_tiled"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: attention on gpu runs as plain XLA (xla_tiled): ")
    assert "not cudnn: cuDNN takes bfloat16 or float16 only, not float32" in line


def test_every_kernel_is_registered():
    assert {name for names in KERNELS_BY_PLATFORM.values() for name in names} <= set(
        IMPLEMENTATIONS
    )


def test_default_platform():
    assert api.default_platform() == "gpu" or api.default_platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert api.default_platform() == "cpu"


UNSUPPORTED = {
    "tpu here": (splash, like(), {"on": "cpu"}, "needs a TPU, not cpu"),
    "tpu float16": (splash, like(dtype=jnp.float16), {"on": "tpu"}, "not float16"),
    "tpu prefix": (splash, like(), {"on": "tpu", "mask": Mask(True, prefix=ints(1, 1))}, "prefix"),
    "tpu start": (splash, like(), {"on": "tpu", "mask": Mask(True, q_start=ints(1, 1))}, "q_start"),
    "cudnn here": (cudnn, like(), {"on": "cpu"}, "NVIDIA GPU, not cpu"),
    "cudnn rocm": (cudnn, like(), {"on": "rocm"}, "NVIDIA GPU, not rocm"),
    "cudnn wide": (cudnn, like(C=264), {"on": "gpu"}, "up to"),
    "cudnn dtype": (cudnn, like(dtype=jnp.float32), {"on": "gpu"}, "not float32"),
    "cudnn softcap": (cudnn, like(), {"on": "gpu", "softcap": 1.0}, "softcap"),
    "cudnn ahead": (cudnn, like(), {"on": "gpu", "mask": Mask(window_right=2)}, "window_right"),
    "cudnn window": (cudnn, like(), {"on": "gpu", "mask": Mask(window=2)}, "without causality"),
}


@pytest.mark.parametrize(("module", "q", "more", "words"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_reasons(module, q, more, words):
    given = {"mask": Mask(), "softcap": None, **more}
    assert words in module.unsupported_reason(q, q, q, given["mask"], given["softcap"], given["on"])


def test_masks_that_hide_nothing_are_supported():
    """A prefix and a start have no effect without causality or a window."""
    idle = Mask(prefix=ints(1, 2), q_start=ints(3, 4))
    q = like()
    assert splash.unsupported_reason(q, q, q, idle, None, "tpu") is None
    assert cudnn.unsupported_reason(q, q, q, idle, None, "gpu") is None


class TestApi:
    def test_unknown_name(self):
        q, k, v, _ = arrays(Case())
        with pytest.raises(NotImplementedError, match=r"'quick'.*reference"):
            attention(q, k, v, implementation="quick")

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("cpu", "xla_tiled"),
            ("chunked", "xla_chunked"),
            ("tpu", "splash"),
            ("pallas_gpu", "mosaic_gpu"),
        ],
    )
    def test_a_former_name_is_answered_with_the_new_one(self, old, new):
        q, k, v, _ = arrays(Case())
        with pytest.raises(NotImplementedError, match=rf"'{old}' is now called '{new}'$"):
            attention(q, k, v, implementation=old)

    def test_a_named_implementation_that_cannot_run_raises_the_reason(self):
        q, k, v, _ = arrays(Case(L=17))
        with pytest.raises(
            NotImplementedError, match=r"'cudnn' cannot run.*an NVIDIA GPU, not cpu"
        ):
            attention(q, k, v, implementation="cudnn")

    def test_the_selected_implementation_is_the_one_that_runs(self):
        q, k, v, _ = arrays(Case())
        name = choose(q, k, Mask(causal=True))
        assert name in IMPLEMENTATIONS
        np.testing.assert_array_equal(
            attention(q, k, v, mask=Mask(causal=True)),
            attention(q, k, v, mask=Mask(causal=True), implementation=name),
        )

    @pytest.mark.parametrize("other", [Case(K=3), Case(C=4), Case(S=5)])
    def test_mismatched_shapes_raise(self, other):
        q, _, v, _ = arrays(Case())
        _, bad, _, _ = arrays(other)
        with pytest.raises(ValueError, match="head"):
            attention(q, bad, bad if other.S == 7 else v)

    @pytest.mark.parametrize("name", ["reference", "xla_tiled", "xla_chunked", "decode"])
    def test_segments_of_queries_alone_raise(self, name):
        q, k, v, _ = arrays(Case())
        mask = Mask(q_segments=ints([1] * 7, [1] * 7))
        with pytest.raises(ValueError, match="together"):
            attention(q, k, v, mask=mask, implementation=name)
