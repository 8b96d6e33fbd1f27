"""Points of a sweep on a Dask cluster (the extra ``leanonnx[dask]``).

Files travel as bytes, those of a model once for all its points: a path may name another file, or none, on the machine
of a worker.  Each point runs in a process of its own there too, on one thread, so that as many run at once as the
workers have threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from distributed import Client, Future, as_completed

from leanonnx.commands.sweep.rows import OutcomeRow
from leanonnx.commands.sweep.worker import MADE, Answers, Task, calibration, made_here
from leanonnx.data.files import sample_files
from leanonnx.errors import BUG, OptionError
from leanonnx.version import __version__

Parcel = dict[str, bytes]
"""Contents of files by their place in a folder."""
MODEL, CALIB, RULES, LIBRARY, TARGETS = "model", "calib", "rules", "library", "targets"
PATIENCE = 20
"""Seconds within which the scheduler, and a first worker, have to answer."""


def made_on(tasks: Sequence[Task], work: Path, address: str) -> Answers:
    """Carry out tasks, which differ in model and budget only, on the workers of a scheduler; see ``made_here``.

    Raises:
        OptionError: no scheduler or no worker is there, or a worker has another leanonnx.
    """
    if not tasks:
        return
    with _connected(address) as client:
        (shared,) = client.scatter([packed(shared_files(tasks[0]))], hash=False)
        models = {}
        for task in tasks:
            if task.source not in models:
                (models[task.source],) = client.scatter([packed(model_files(task))], hash=False)
        futures = {
            client.submit(carried_out, task, models[task.source], shared, pure=False): index
            for index, task in enumerate(tasks)
        }
        try:
            for future in as_completed(list(futures), loop=client.loop):
                yield futures[future], _received(future, work / str(futures[future]) / MADE)
        finally:
            client.cancel(list(futures))


def carried_out(task: Task, model: Parcel, shared: Parcel) -> tuple[OutcomeRow, Parcel]:
    """Carry out a task, whose files are given; what came of it, with its files (the worker's part)."""
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as name:
        given, work = Path(name) / "given", Path(name) / "work"
        unpack({**model, **shared}, given)
        there = moved(task, given)
        ((_, row),) = made_here([there], work, threads=1)
        for here, path in ((task.source, there.source), (task.options.calib, there.options.calib)):
            row = replace(row, message=row.message.replace(str(path), str(here)))  # users know no path of a worker
        made = work / "0" / MADE
        return row, packed({file.name: file for file in made.iterdir()})


def worker_version() -> str:
    """Version of leanonnx on a worker."""
    return __version__


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise OptionError(
            f"--dask {address}: no scheduler answers there ({error}); give the address it shows"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
            versions = set(client.run(worker_version).values())
        except TimeoutError as error:
            raise OptionError(f"--dask {address}: the scheduler has no workers; start some") from error
        except ImportError as error:
            raise OptionError(
                f"--dask {address}: the workers cannot import leanonnx ({error}); install it there"
            ) from error
        if versions != {__version__}:
            raise OptionError(
                f"--dask {address}: the workers have leanonnx {', '.join(sorted(versions))}, this is {__version__}; "
                "install the same everywhere"
            )
        yield client


def _received(future: Future, folder: Path) -> OutcomeRow:
    """What a worker found, its files put into a folder."""
    error = future.exception()
    if error is not None:
        return OutcomeRow(BUG, f"the worker failed: {error!r}")
    row: OutcomeRow
    row, parcel = future.result()
    unpack(parcel, folder)
    return row


def model_files(task: Task) -> dict[str, Path]:
    """The files of a task's model, by their place in a folder."""
    home = task.source.parent.resolve()
    beside = {file.relative_to(home).as_posix(): file for file in task.external}
    return {f"{MODEL}/{place}": file for place, file in {**beside, task.source.name: task.source}.items()}


def shared_files(task: Task) -> dict[str, Path]:
    """All files but the model's, by their place in a folder."""
    options = task.options
    calib = calibration(options)
    samples = sample_files(calib) if calib else []
    inner = f"{CALIB}/{calib.name}" if calib and calib.is_dir() else CALIB
    return {
        **{f"{inner}/{file.name}": file for file in samples},
        **{f"{LIBRARY}/{number}/{file.name}": file for number, file in enumerate(options.libraries)},
        **({f"{RULES}/{task.rules.name}": task.rules} if task.rules else {}),
        **({f"{TARGETS}/{options.targets.name}": options.targets} if options.targets else {}),
    }


def moved(task: Task, given: Path) -> Task:
    """The task with its files in a folder."""
    options, calib = task.options, calibration(task.options)
    options = replace(
        options,
        calib=calib and given / CALIB / calib.name,
        libraries=tuple(given / LIBRARY / str(k) / file.name for k, file in enumerate(options.libraries)),
        targets=options.targets and given / TARGETS / options.targets.name,
    )
    rules = task.rules and given / RULES / task.rules.name
    return replace(task, source=given / MODEL / task.source.name, external=(), rules=rules, options=options)


def packed(files: Mapping[str, Path]) -> Parcel:
    """The contents of files."""
    return {place: file.read_bytes() for place, file in files.items()}


def unpack(parcel: Parcel, folder: Path) -> None:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, content in parcel.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)
