"""No process listens on a socket unless asked to, and on loopback only if that was asked for."""

import ipaddress
import socket
import threading

import psutil
import pytest

from experiments import cli, compare, pretrain
from fm.study import presets
from tests.parallel.test_distributed import finished, start
from tests.study.helpers_study import recipe


def listening(process):
    """(address, port) of every listening socket."""
    try:
        found = process.net_connections("inet")
    except psutil.NoSuchProcess:
        return set()
    waiting = [each.laddr for each in found if each.status == psutil.CONN_LISTEN]
    return {(each.ip.removeprefix("::ffff:"), each.port) for each in waiting}


class Watch(threading.Thread):
    """Polls the listening sockets of processes until the block ends."""

    def __init__(self, *pids):
        super().__init__(daemon=True)
        self.processes = [psutil.Process(pid) for pid in pids]
        self.seen, self.looks, self.over = set(), 0, threading.Event()

    def run(self):
        while not self.over.wait(0.02):
            for process in self.processes:
                self.seen |= listening(process)
            self.looks += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def test_a_listening_socket_is_detected():
    with socket.create_server(("127.0.0.1", 0)) as server, Watch(psutil.Process().pid) as watch:
        while not watch.looks:
            pass
    assert server.fileno() == -1 and "127.0.0.1" in {ip for ip, _ in watch.seen}


@pytest.mark.slow
def test_nothing_listens_while_an_experiment_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        presets, "modality_recipe", lambda modality, profile="default": recipe(modality)
    )
    before = listening(psutil.Process())
    compare_flags = ["--label_budgets=20", "--seeds=1", "--model="]
    with Watch(psutil.Process().pid) as watch:
        for name, module, given in (
            ("pretrain", pretrain, ["--dataset=digits", "--steps=2"]),
            ("compare", compare, ["--tasks=digits", *compare_flags]),
        ):
            out = f"--out={tmp_path / name}"
            assert cli.call(name, "", module.define, module.main, [out, *given]) == 0
    assert watch.looks > 10 and watch.seen <= before


@pytest.mark.slow
def test_processes_with_a_loopback_coordinator_listen_on_loopback_only(request, tmp_path):
    started = start(request.config.cache, tmp_path / "out", "fsdp:4", 2, 2)
    with Watch(*(each.pid for each in started)) as watch:
        finished(started)
    assert watch.seen and all(ipaddress.ip_address(ip).is_loopback for ip, _ in watch.seen)
