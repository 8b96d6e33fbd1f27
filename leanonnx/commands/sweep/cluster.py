"""Make the points of a sweep on a Dask cluster (the extra ``dask``).

Files are sent as bytes, since paths may differ on the workers' machines; those of a model only once for all its points.
Each point runs in a process of its own on one thread, so that as many run at once as the workers have threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from distributed import Client, Future, as_completed

from leanonnx.commands.sweep.rows import OutcomeRow
from leanonnx.commands.sweep.worker import MADE, Answers, Task, calibration_path, make_locally
from leanonnx.data.files import sample_files
from leanonnx.errors import BUG, OptionError
from leanonnx.spelling import option
from leanonnx.version import __version__

Parcel = dict[str, bytes]
"""Contents of files by their relative paths in a folder."""
MODEL, CALIB, RULES, LIBRARY, TARGETS = "model", "calib", "rules", "library", "targets"
CONNECT_SECONDS = 20
"""Timeout for an answer of the scheduler, and of a first worker."""


def make_on_cluster(tasks: Sequence[Task], work: Path, address: str) -> Answers:
    """Carry out tasks, which differ only in model and budget, on the workers of a scheduler; see ``make_locally``.

    Raises:
        OptionError: no scheduler or worker answers, or a worker has another version of leanonnx.
    """
    if not tasks:
        return
    with _connect(address) as client:
        (shared,) = client.scatter([pack(shared_files(tasks[0]))], hash=False)
        models = {}
        for task in tasks:
            if task.source not in models:
                (models[task.source],) = client.scatter([pack(model_files(task))], hash=False)
        futures = {
            client.submit(_run_on_worker, task, models[task.source], shared, pure=False): index
            for index, task in enumerate(tasks)
        }
        try:
            for future in as_completed(list(futures), loop=client.loop):
                yield futures[future], _receive(future, work / str(futures[future]) / MADE)
        finally:
            client.cancel(list(futures))


def _run_on_worker(task: Task, model: Parcel, shared: Parcel) -> tuple[OutcomeRow, Parcel]:
    """Carry out a task with the given files, on a worker; returns its outcome and its files."""
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as name:
        given, work = Path(name) / "given", Path(name) / "work"
        unpack({**model, **shared}, given)
        there = with_files_in(task, given)
        ((_, row),) = make_locally([there], work, threads=1)
        for here, path in ((task.source, there.source), (task.options.calib, there.options.calib)):
            row = replace(
                row, message=row.message.replace(str(path), str(here))
            )  # users do not know the worker's paths
        made = work / "0" / MADE
        return row, pack({file.name: file for file in made.iterdir()})


def worker_version() -> str:
    """Version of leanonnx on a worker."""
    return __version__


@contextmanager
def _connect(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise OptionError(
            f"{option('dask', address)}: no scheduler answers there ({error}); give the address it shows"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            versions = set(client.run(worker_version).values())
        except TimeoutError as error:
            raise OptionError(f"{option('dask', address)}: the scheduler has no workers; start some") from error
        except ImportError as error:
            raise OptionError(
                f"{option('dask', address)}: the workers cannot import leanonnx ({error}); install it there"
            ) from error
        if versions != {__version__}:
            raise OptionError(
                f"{option('dask', address)}: the workers have leanonnx {', '.join(sorted(versions))}, this is "
                f"{__version__}; install the same everywhere"
            )
        yield client


def _receive(future: Future, folder: Path) -> OutcomeRow:
    """The outcome that a worker returned; its files are written to a folder."""
    error = future.exception()
    if error is not None:
        return OutcomeRow(BUG, f"the worker failed: {error!r}")
    row: OutcomeRow
    row, parcel = future.result()
    unpack(parcel, folder)
    return row


def model_files(task: Task) -> dict[str, Path]:
    """Files of a task's model by their relative paths in the parcel."""
    home = task.source.parent.resolve()
    beside = {file.relative_to(home).as_posix(): file for file in task.external}
    return {f"{MODEL}/{place}": file for place, file in {**beside, task.source.name: task.source}.items()}


def shared_files(task: Task) -> dict[str, Path]:
    """All other files of a task by their relative paths in the parcel."""
    options = task.options
    calib = calibration_path(options)
    samples = sample_files(calib) if calib else []
    inner = f"{CALIB}/{calib.name}" if calib and calib.is_dir() else CALIB
    return {
        **{f"{inner}/{file.name}": file for file in samples},
        **{f"{LIBRARY}/{number}/{file.name}": file for number, file in enumerate(options.libraries)},
        **({f"{RULES}/{task.rules.name}": task.rules} if task.rules else {}),
        **({f"{TARGETS}/{options.targets.name}": options.targets} if options.targets else {}),
    }


def with_files_in(task: Task, given: Path) -> Task:
    """Return a task with its paths replaced by those in a folder."""
    options, calib = task.options, calibration_path(task.options)
    options = replace(
        options,
        calib=calib and given / CALIB / calib.name,
        libraries=tuple(given / LIBRARY / str(k) / file.name for k, file in enumerate(options.libraries)),
        targets=options.targets and given / TARGETS / options.targets.name,
    )
    rules = task.rules and given / RULES / task.rules.name
    return replace(task, source=given / MODEL / task.source.name, external=(), rules=rules, options=options)


def pack(files: Mapping[str, Path]) -> Parcel:
    """Read files into a parcel."""
    return {place: file.read_bytes() for place, file in files.items()}


def unpack(parcel: Parcel, folder: Path) -> None:
    """Write the files of a parcel into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, content in parcel.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)
