"""Calls on a local Ray cluster; its workers die and are replaced."""

import importlib.util

import pytest

from fm.errors import UserError
from fm.study import ray_executor
from tests.study import helpers_ray

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -e .[ray]"
)


@needs_ray
@pytest.mark.slow
def test_calls_are_made_and_made_again_where_a_worker_was_lost(tmp_path):
    folders = {name: tmp_path / name for name in ("plain", "lossy", "lost")}
    for folder in folders.values():
        folder.mkdir()
    with ray_executor.ray_cluster() as ray:
        for call, name in ((helpers_ray.write, "plain"), (helpers_ray.write_or_die, "lossy")):
            ray_executor.run_calls(ray, call, [(str(folders[name]), n) for n in range(4)], name)
            texts = [(folders[name] / f"{n}.txt").read_text() for n in range(4)]
            assert texts == ["0", "1", "4", "9"]
        assert len(list(folders["lossy"].glob("*.begun"))) == 2
        with pytest.raises(UserError, match="3 is not to be had"):
            ray_executor.run_calls(ray, helpers_ray.refuse, [("", 3)], "refused")
        with pytest.raises(UserError, match=r"lost 4 times at .*, 7 .*to resume"):
            ray_executor.run_calls(ray, helpers_ray.die, [(str(folders["lost"]), 7)], "lost")
        assert (folders["lost"] / "attempts").read_text() == "xxxx"
        for node in ray.nodes():
            assert node["NodeManagerAddress"] == "127.0.0.1"


def test_without_ray_it_is_said(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(ray_executor.importlib, "import_module", missing)
    missed = pytest.raises(UserError, match=r"--cluster=ray needs Ray: pip install -e \.\[ray\]")
    with missed, ray_executor.ray_cluster():
        pass
