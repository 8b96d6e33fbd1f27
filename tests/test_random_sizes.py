"""On random networks with free axes, the compact network equals the masked original at every size.

Each network is observed at one size and run at two more, which differ in every free axis.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from leanonnx.analysis.dag import ChannelDag, analyse
from leanonnx.graph.model import load
from leanonnx.numeric.labels import Mask
from leanonnx.runtime.observation import declared, observe
from leanonnx.surgery.operate import apply
from leanonnx.surgery.patch import masking_patch
from tests.at_sizes import Pair, Shapes, runs_at
from tests.free_models import FreeModel, from_seed, models
from tests.graphs import saved
from tests.test_masked_equals_compact import assert_same_interface, compacted, kept_by_rank, killed

MANY = 2000
EXAMPLES = settings.default.max_examples * (5 if settings.default.max_examples >= MANY else 1)
"""The long profile draws ten thousand."""


@contextmanager
def analysed(model: FreeModel) -> Iterator[ChannelDag]:
    """The channel DAG of a model, observed at the first of its sizes."""
    note(onnx.printer.to_text(model.proto))
    note(f"sizes: {model.sizes}")
    with tempfile.TemporaryDirectory() as folder:
        found = load(saved(model.proto, Path(folder)))
        yield analyse(found, observe(found, model.sizes[0]))


def check(dag: ChannelDag, alive: Mask, sizes: tuple[Shapes, ...]) -> None:
    """Equal at all sizes, and sample by sample."""
    event("nothing removed" if alive.all() else "channels removed")
    compact = compacted(dag, alive)
    onnx.checker.check_model(compact, full_check=True)
    assert_same_interface(dag.model.proto, compact)
    pair = Pair(apply(dag.model, masking_patch(dag, alive)), compact, dag.model.inputs)
    for shapes in sizes:
        pair.assert_equal(shapes)
    if all(isinstance(declared(value)[0], str) for value in dag.model.inputs):
        event("batch")
        pair.assert_samples_alone(next(s for s in sizes if next(iter(s.values()))[0] == 3))


@given(models(), st.integers(0, 1 << 30), st.booleans())
@settings(max_examples=EXAMPLES)
def test_masked_equals_compact_at_every_size(model: FreeModel, seed: int, ranked: bool) -> None:
    """Classes of channels die at random, or what a random ranking leaves."""
    rng = np.random.default_rng(seed)
    with analysed(model) as dag:
        check(dag, kept_by_rank(dag, rng, separate_readers=True) if ranked else killed(dag, rng), model.sizes)


def test_random_models_run_at_every_size() -> None:
    """The test above says something only where the original runs at all sizes."""
    drawn = [from_seed(seed) for seed in range(60)]
    assert all(len(runs_at(m.proto, m.proto.graph.input, m.sizes)) == len(m.sizes) for m in drawn)
