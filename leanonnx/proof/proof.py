"""The proof: the compressed model equals the original whose removed channels are zeroed in their consumers.

Both models run in onnxruntime on the same inputs, random and, if given, real ones, at all known sizes.  Every output is
compared channel by channel, and so are the last floats before every decision.  A tensor that does not vary with the
inputs is uninformative: the tensors behind it are compared instead, and if these do not vary either, nothing is proven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from leanonnx.formatting import count_text
from leanonnx.graph.formats import (
    HALF_TYPES,
    ElementTypes,
    Source,
    convert_feed,
    convert_to_float32,
    float_types,
    load_proto,
    number_format,
)
from leanonnx.graph.model import Model
from leanonnx.inputs.random import INPUT_KINDS as INPUT_KINDS
from leanonnx.inputs.random import further_inputs, group_by_size, sizes_of
from leanonnx.inputs.random import random_inputs as random_inputs
from leanonnx.proof.compare import CONSTANT, ComparedChannels
from leanonnx.proof.compare import relative_error as relative_error
from leanonnx.proof.decisions import behind_decisions as behind_decisions
from leanonnx.proof.decisions import depends_on_weight, discrete_outputs, tensors_behind
from leanonnx.proof.noise import FixedDraws, fix_random_operators
from leanonnx.proof.sides import ErrorTable, Findings, ProofRun, Sides
from leanonnx.runtime.sessions import Feed, run
from leanonnx.system.notebook import ResultTable, View, result_csv, result_frame, result_html

ERROR_BOUNDS = {"float64": 1e-10, "float32": 1e-4, "quantised": 2e-2}
ROUNDING_SHARES = {"float64": 1e-2, "float32": 2e-2, "quantised": 1.0}
"""Share of a norm up to which differences may be rounding errors: times the bound, a few units in the last place."""
MANY_NODES = 2500
"""Number of nodes up to which onnxruntime optimises the compared graphs; its time is quadratic in that number."""
UNKNOWN_CHANNELS = ComparedChannels()
PASSED, FAILED, VACUOUS, RANDOM = "passed", "failed", "vacuous", "random"
RESTLESS = "its outputs differ from one run to the next"
"""Reason of a random proof without any operator that draws numbers."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Result of a proof; errors are relative, the worst over inputs, tensors and their channels.

    Attributes:
        status: ``passed``, ``failed``; ``vacuous``: an output was uninformative on all inputs; ``random``: the network
            draws random numbers that cannot be fixed, or differs from itself.
        max_relative_error: the largest error.
        bound: the widest limit that was applied.
        inputs: number of inputs.
        outputs: the largest error of each output, and of each inner tensor that was compared.
        silent: uninformative outputs with the reason: ``empty``, ``constant``, ``not finite``, ``chaotic``.
        sizes: number of different input sizes.
        kinds: further kinds of inputs that were tried.
        reason: the source of randomness of the network.
    """

    status: str
    max_relative_error: float
    bound: float
    inputs: int
    outputs: dict[str, float]
    silent: Mapping[str, str] = field(default_factory=dict)
    sizes: int = 1
    kinds: tuple[str, ...] = ()
    reason: str = ""

    @property
    def passed(self) -> bool:
        """True if every output agrees, on informative inputs."""
        return self.status == PASSED

    def _view(self) -> View:
        silent = {name: None for name in self.silent if name not in self.outputs}
        rows = tuple(
            {"output": name, "max_relative_error": error, "silent": self.silent.get(name)}
            for name, error in (*self.outputs.items(), *silent.items())
        )
        line = f"proof {self.status}: largest relative error {self.max_relative_error:.1e}, bound {self.bound:.1e}"
        return View(
            line=f"{line}, on {count_text(self.inputs, 'input')}",
            mood="good" if self.passed else "bad",
            tables=(ResultTable("outputs", rows),),
            notes=(self.reason,) if self.reason else (),
        )

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv


def is_optimised(model: Model) -> bool:
    """True if onnxruntime optimises the graphs that are compared with a model, fused kernels included."""
    return len(model.proto.graph.node) <= MANY_NODES


def compare_with_reference(
    model: Model,
    reference: Source,
    candidate: Source,
    feeds: Sequence[Feed],
    replaced: ElementTypes = frozenset(),
    channels: ComparedChannels = UNKNOWN_CHANNELS,
) -> Proof:
    """Compare the compressed model with the masked original on every feed.

    Integer outputs (for example of an ArgMax) must agree except for isolated ties, and so must the floats that they are
    based on.  An input is skipped if the reference cannot run on it, amplifies a change in the last place beyond
    ``WIDEST_BOUND``, or computes nothing finite.  Every output needs an informative input; further inputs are drawn
    until it has one.  Models in half precision are proven as float32 stand-ins, to the bound of float32; the models as
    written must load and run.

    Args:
        model: the original, for its output names and number format.
        reference: the original with the removed input columns of its consumers zeroed.
        candidate: the compressed model; a path is proven as written.
        feeds: inputs of the model, those at the usual sizes first.
        replaced: number formats that onnxruntime cannot run, replaced by float32.
        channels: channel ids of its tensors, which divide them into slices, and the keep mask.

    Raises:
        RunFailed: the reference runs on no input, or the candidate fails on one on which the reference runs.
    """
    widened = replaced | (float_types(model.proto) & HALF_TYPES)
    original: Source = model.path
    numbers = model.proto
    if widened:
        if not replaced:
            run(candidate, feeds[:1], libraries=model.libraries)
        original, reference, candidate = (
            convert_to_float32(load_proto(s), widened) for s in (model.proto, reference, candidate)
        )
        numbers = original
    kind = number_format(numbers)
    fused = is_optimised(model)
    sides = Sides(
        original=original,
        reference=reference,
        candidate=candidate,
        libraries=model.libraries,
        channels=channels,
        bound=ERROR_BOUNDS[kind],
        rounding=ROUNDING_SHARES[kind],
        optimise=fused,
    )
    with fix_random_operators(model, sides) as draws:
        return _Prover(model, draws.sides, draws, widened).proof(feeds)


class _Prover:
    """State of a proof: the error tables, and which tensors are informative."""

    def __init__(self, model: Model, sides: Sides, draws: FixedDraws, widened: ElementTypes) -> None:
        self.model, self.sides, self.draws, self.widened = model, sides, draws, widened
        self.outputs = [value.name for value in model.proto.graph.output]
        self.there: set[str] = set()
        self.used: set[str] = set()
        self.tables: list[ErrorTable] = []
        self.walk: dict[str, list[str]] = {}
        self.informative: dict[str, bool] = {}

    def proof(self, feeds: Sequence[Feed]) -> Proof:
        """Return the verdict on all inputs, and on further ones if these are uninformative."""
        taps = behind_decisions(self.model)
        if taps:
            self.there = self.sides.tensors()
            taps = [name for name in taps if name in self.there]
        shapes = {name: value.shape for name, value in feeds[0].items()}
        further = ((kind, self._prepare(feed)) for kind, feed in further_inputs(self.model, shapes))
        fixed = [name for name in self.outputs if not depends_on_weight(self.model, name)]
        comparison = ProofRun(self.sides, self.outputs, taps, fixed)
        findings = comparison.compare_tensors([self._prepare(feed) for feed in feeds], further)
        self.tables, self.used = findings.tables, {*self.outputs, *taps}
        silent: dict[str, str] = {}
        if not self._has_failed:
            self._compare_behind(findings)
            silent = {name: self._silent_kind(name) for name in self.outputs if not self._is_output_informative(name)}
            steady = self.sides.channels.constant_tensors() if CONSTANT in silent.values() else ()
            silent = {name: kind for name, kind in silent.items() if kind != CONSTANT or name not in steady}
        return self._verdict(findings, silent)

    def _prepare(self, feed: Feed) -> Feed:
        return self.draws.add_draws(convert_feed(feed, self.widened))

    @property
    def _has_failed(self) -> bool:
        return any(table.exceeds_limit for table in self.tables if table.name in self.used)

    def _verdict(self, findings: Findings, silent: dict[str, str]) -> Proof:
        tables = [table for table in self.tables if table.name in self.used]
        outputs = dict.fromkeys(self.outputs, 0.0)
        widest = self.sides.bound
        for table in tables:
            outputs[table.name] = max(outputs.get(table.name, 0.0), table.largest_error)
            widest = max([widest, *table.limits[table.limits > widest].tolist()])
        reason = self.draws.reason or (RESTLESS if findings.nondeterministic else "")
        status = FAILED if self._has_failed else VACUOUS if silent else PASSED
        status = RANDOM if status != PASSED and reason else status
        sizes = len({sizes_of(feed) for feed in findings.feeds})
        worst = max(outputs.values(), default=0.0)
        return Proof(
            status=status,
            max_relative_error=worst,
            bound=widest,
            inputs=len(findings.feeds),
            outputs=outputs,
            silent=silent,
            sizes=sizes,
            kinds=findings.kinds,
            reason=reason if status == RANDOM else "",
        )

    def _is_informative(self, name: str, entirely: bool = False) -> bool:
        """True if a tensor is informative; with ``entirely``, if each of its slices is, on the usual inputs.

        Inputs of another scale say little: a bias vanishes beside large numbers.
        """
        tables = [table for table in self.tables if table.name == name]
        if entirely and tables:
            informative = tables[0].informative & tables[0].varies_on_given
            return bool(informative.all() if self.sides.rounding < 1 else informative[0])
        return any(table.informative.any() for table in tables)

    def _is_output_informative(self, name: str) -> bool:
        """True if a graph output is informative, itself or through the tensors compared in its place."""
        if not depends_on_weight(self.model, name):
            return True
        if name not in discrete_outputs(self.model):
            return self._is_informative(name) or self._resolve(name)
        taps = [tap for tap in behind_decisions(self.model, [name]) if self._is_compared(tap)]
        if not taps:
            return self._is_informative(name) or self._resolve(name)
        return all(self._is_informative(tap) or self._resolve(tap) for tap in taps)

    def _is_compared(self, name: str) -> bool:
        return name in self.walk or any(table.name == name for table in self.tables)

    def _compare_behind(self, findings: Findings) -> None:
        """Compare the tensors behind those that are not informative in all slices."""
        roots = [*self.outputs, *(table.name for table in self.tables)]
        roots += [tap for name in discrete_outputs(self.model) for tap in behind_decisions(self.model, [name])]
        roots = [name for name in dict.fromkeys(roots) if not self._is_informative(name, entirely=True)]
        self.walk = tensors_behind(self.model, roots)
        if not roots:
            return
        self.there = self.there or self.sides.tensors()
        known = {table.name for table in self.tables}
        names = [name for name in self.walk if name in self.there and name not in known]
        if names:
            some = [findings.feeds[k] for group in group_by_size(findings.feeds) for k in group]
            self.tables = self.tables + ProofRun(self.sides, (), names).compare_tensors(some).tables
        for root in roots:
            self._resolve(root)

    def _resolve(self, name: str) -> bool:
        """True if a tensor or any tensor behind it is informative; tensors checked on the way count for the proof."""
        if name not in self.informative:
            self.used.add(name)
            whole = self._is_informative(name, entirely=True)
            inner = [] if whole else [self._resolve(other) for other in self.walk.get(name, ())]
            self.informative[name] = whole or self._is_informative(name) or any(inner)
        return self.informative[name]

    def _silent_kind(self, name: str) -> str:
        tables = [table for table in self.tables if table.name == name]
        if any(table.varies.any() for table in tables):
            return "chaotic"
        return tables[0].kind if tables else "empty"
