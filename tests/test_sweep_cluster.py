"""Sweeps on a Dask cluster: the same models as at home, whatever files the workers see."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.sweep.worker import Task
from tests.helpers import CNN, build, called, refused, saved, saved_external, tree

distributed = pytest.importorskip("distributed", reason="Dask is an extra: pip install distributed")
from leanonnx.commands.sweep import cluster  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Dask's own, which it turns on and off itself
QUICK = ("--no-measure", "--align", 1, "--save-models")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two workers, each a process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as local:
        yield local.scheduler_address


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models, the second with its weights in another file, and inputs for both."""
    saved(build(CNN), tmp_path / "a.onnx")
    saved_external(build(CNN, seed=1), tmp_path / "b.onnx")
    x = np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32)
    (tmp_path / "inputs").mkdir()
    for k in range(2):
        np.savez(tmp_path / "inputs" / f"{k}.npz", x=x[k::2])
    return tmp_path


def test_the_same_as_at_home(models: Path, address: str) -> None:
    args = ("a.onnx", "b.onnx", "--keep", "0.5,0.001", *QUICK, "--calib", "inputs", "--json")
    rows: list[dict[str, Any]] = []
    for name, more in (("here", ()), ("there", ("--dask", address))):
        done = called("sweep", *args, "--out", name, *more, cwd=models)
        assert done.returncode == 1, done.stderr
        rows.append(json.loads(done.stdout))
    here, there = ([point for each in row["models"] for point in each["points"]] for row in rows)
    assert [point["code"] for point in there] == [0, 1, 0, 1]
    for a, b in zip(here, there, strict=True):
        for key in ("kernels", "bytes", "proof", "deviation", "message", "warnings"):
            assert a[key] == b[key]
    assert tree(models / "here" / "models") == tree(models / "there" / "models")
    assert len(tree(models / "there" / "models")) == 3


def test_failures_on_the_cluster_are_reported(models: Path, address: str) -> None:
    """With the path that the user knows."""
    says = ("--pin ghost",)
    refused(models, "sweep", "a.onnx", "--keep", "0.5", *QUICK, "--pin", "ghost", "--dask", address, says=says)
    np.savez(models / "odd.npz", x=np.zeros((5, 4, 8, 8), np.float32))
    says = ("leanonnx: odd.npz: array 'x'",)
    refused(models, "sweep", "a.onnx", "--keep", "0.5", *QUICK, "--calib", "odd.npz", "--dask", address, says=says)
    (models / "bad.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    args = ("--keep", "0.5", *QUICK, "--rules", "bad.py", "--dask", address, "--json")
    done = called("sweep", "a.onnx", *args, cwd=models)
    assert done.returncode == 3
    assert "was killed by SIGKILL" in json.loads(done.stdout)["models"][0]["points"][0]["message"]


def test_no_scheduler(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    there = ("--dask", "tcp://127.0.0.1:9")
    refused(models, "sweep", "a.onnx", "--keep", "0.5", *QUICK, *there, says=("tcp://127.0.0.1:9", "no scheduler"))
    refused(models, "sweep", "a.onnx", "--keep", "0.5", *QUICK, "--dask", "nonsense://", says=("nonsense://",))


def test_no_workers(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as local:
        there = ("--dask", local.scheduler_address)
        refused(models, "sweep", "a.onnx", "--keep", "0.5", *QUICK, *there, says=("no workers",))


def test_workers_with_another_version(models: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "__version__", "9.9.9")
    says = ("the workers have leanonnx", "this is 9.9.9")
    refused(models, "sweep", "a.onnx", "--keep", "0.5", *QUICK, "--dask", address, says=says)


def test_every_file_travels(models: Path, tmp_path: Path) -> None:
    """On the worker's side no path leads out of the folder of what was sent."""
    for name in ("rules.py", "targets.toml", "one.so"):
        (models / name).write_text(name)
    options = CompressOptions(
        calib=models / "inputs", libraries=(models / "one.so", models / "one.so"), targets=models / "targets.toml"
    )
    task = Task(
        source=models / "b.onnx",
        name="out.onnx",
        options=options,
        external=(models / "weights.bin",),
        rules=models / "rules.py",
    )
    for calib in (models / "inputs", models / "inputs" / "0.npz", None):
        task = replace(task, options=replace(options, calib=calib))
        given = tmp_path / f"given-{calib and calib.name}"
        parcels = [cluster.pack(files) for files in (cluster.model_files(task), cluster.shared_files(task))]
        for parcel in pickle.loads(pickle.dumps(parcels)):
            cluster.unpack(parcel, given)
        there = cluster.with_files_in(task, given)
        paths = [there.source, there.rules, there.options.calib, there.options.targets, *there.options.libraries]
        assert [path for path in paths if path is not None and not path.is_relative_to(given)] == []
        assert [path for path in paths if path is not None and not path.exists()] == []
        assert there.source.read_bytes() == task.source.read_bytes()
        assert there.source.with_name("weights.bin").read_bytes() == (models / "weights.bin").read_bytes()
        if calib is not None:
            assert there.options.calib is not None
            assert there.options.calib.name == calib.name
