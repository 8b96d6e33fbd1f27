"""The proof: the compressed model equals the original whose removed channels are zeroed in their consumers.

Both are run in onnxruntime on the same inputs, random ones and, where given, real ones, at all sizes that are known.
Every output is compared channel by channel, and so are the last floats before every decision.  What varies with no
input tells nothing: then what lies behind it is compared, and where that tells nothing either, nothing is proven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from leanonnx.graph.formats import (
    HALVES,
    Kinds,
    Source,
    fed_in_float32,
    float_kinds,
    in_float32,
    loaded,
    number_format,
)
from leanonnx.graph.model import Model
from leanonnx.inputs.random import KINDS as KINDS
from leanonnx.inputs.random import alike, further_inputs, sizes_of
from leanonnx.inputs.random import inputs_for as inputs_for
from leanonnx.proof.compare import CONSTANT, ComparedChannels
from leanonnx.proof.compare import relative as relative
from leanonnx.proof.decisions import behind, decided, weighed
from leanonnx.proof.decisions import behind_decisions as behind_decisions
from leanonnx.proof.noise import Draws, drawn
from leanonnx.proof.sides import Findings, ProofRun, Sides, Table
from leanonnx.runtime.sessions import Feed, run

BOUND = {"float64": 1e-10, "float32": 1e-4, "quantised": 2e-2}
ROUNDING = {"float64": 1e-2, "float32": 2e-2, "quantised": 1.0}
"""Share of a norm below which differences may be rounding errors: times the bound, some units in the last place."""
MANY_NODES = 2500
"""Nodes up to which onnxruntime optimises the graphs to be compared, which takes time quadratic in their number."""
UNKNOWN = ComparedChannels()
PASSED, FAILED, VACUOUS, RANDOM = "passed", "failed", "vacuous", "random"


@dataclass(frozen=True)
class Proof:
    """Result of a proof; errors are relative, the worst over inputs, tensors and their channels.

    Attributes:
        status: ``passed``, ``failed``; ``vacuous``: an output told nothing on any input; ``random``: the network draws
            numbers of its own that cannot be fixed.
        max_relative_error: the largest error.
        bound: the widest limit that was applied.
        inputs: how many inputs were compared.
        outputs: the largest error of each output, and of each tensor within that was compared too.
        silent: outputs that told nothing, and why: ``empty``, ``constant``, ``not finite``, ``chaotic``.
        sizes: at how many sizes of the inputs.
        kinds: further kinds of inputs that were tried.
        reason: what makes the network random.
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
        """Whether every output agrees, on inputs that tell."""
        return self.status == PASSED


def prove(
    model: Model,
    reference: Source,
    candidate: Source,
    feeds: Sequence[Feed],
    replaced: Kinds = frozenset(),
    channels: ComparedChannels = UNKNOWN,
) -> Proof:
    """Compare the compressed model with the masked original on every feed.

    Integer outputs (of an ArgMax, say) must agree but for isolated ties, and so must the floats they are made from.
    An input on which the reference itself amplifies a change in the last place beyond ``WIDEST``, or puts out nothing
    finite, tells nothing and is passed over, as is one that it cannot run on; every output needs one that tells, and
    further inputs are drawn where none does.  Models in half precision are proven as float32 stand-ins, to the bound of
    float32; as written they must load and run.

    Args:
        model: the original, for its output names and number format.
        reference: the original with the dead input columns of its consumers zeroed.
        candidate: the compressed model; a path is proven as written.
        feeds: inputs of the model, those at the usual sizes first.
        replaced: number formats that onnxruntime cannot run, to be seen as float32.
        channels: labels of its tensors, which divide them into slices, and which of them are alive.
    """
    widened = replaced | (float_kinds(model.proto) & HALVES)
    original: Source = model.path
    numbers = model.proto
    if widened:
        if not replaced:
            run(candidate, feeds[:1], libraries=model.libraries)
        original, reference, candidate = (in_float32(loaded(s), widened) for s in (model.proto, reference, candidate))
        numbers = original
    kind = number_format(numbers)
    fused = len(model.proto.graph.node) <= MANY_NODES
    sides = Sides(original, reference, candidate, model.libraries, channels, BOUND[kind], ROUNDING[kind], fused)
    with drawn(model, sides) as draws:
        return _Proving(model, draws.sides, draws, widened).proof(feeds)


class _Proving:
    """One proof: what has been compared, and what tells."""

    def __init__(self, model: Model, sides: Sides, draws: Draws, widened: Kinds) -> None:
        self.model, self.sides, self.draws, self.widened = model, sides, draws, widened
        self.outputs = [value.name for value in model.proto.graph.output]
        self.there: set[str] = set()
        self.used: set[str] = set()
        self.tables: list[Table] = []
        self.walk: dict[str, list[str]] = {}
        self.resolved: dict[str, bool] = {}

    def proof(self, feeds: Sequence[Feed]) -> Proof:
        """The verdict on all inputs, with more where they do not tell."""
        taps = behind_decisions(self.model)
        if taps:
            self.there = self.sides.tensors()
            taps = [name for name in taps if name in self.there]
        shapes = {name: value.shape for name, value in feeds[0].items()}
        further = ((kind, self._fed(feed)) for kind, feed in further_inputs(self.model, shapes))
        fixed = [name for name in self.outputs if not weighed(self.model, name)]
        comparison = ProofRun(self.sides, self.outputs, taps, fixed)
        found = comparison.findings([self._fed(feed) for feed in feeds], further)
        self.tables, self.used = found.tables, {*self.outputs, *taps}
        silent: dict[str, str] = {}
        if not self._failed:
            self._retreat(found)
            silent = {name: self._kind(name) for name in self.outputs if not self._tells(name)}
            steady = self.sides.channels.steady() if CONSTANT in silent.values() else ()
            silent = {name: kind for name, kind in silent.items() if kind != CONSTANT or name not in steady}
        return self._verdict(found, silent)

    def _fed(self, feed: Feed) -> Feed:
        return self.draws.joined(fed_in_float32(feed, self.widened))

    @property
    def _failed(self) -> bool:
        return any(table.failed for table in self.tables if table.name in self.used)

    def _verdict(self, found: Findings, silent: dict[str, str]) -> Proof:
        tables = [table for table in self.tables if table.name in self.used]
        outputs = dict.fromkeys(self.outputs, 0.0)
        widest = self.sides.bound
        for table in tables:
            outputs[table.name] = max(outputs.get(table.name, 0.0), table.worst)
            widest = max([widest, *table.limits[table.limits > widest].tolist()])
        reason = self.draws.reason or ("its outputs differ from one run to the next" if found.restless else "")
        status = FAILED if self._failed else VACUOUS if silent else PASSED
        status = RANDOM if status != PASSED and reason else status
        sizes = len({sizes_of(feed) for feed in found.feeds})
        worst = max(outputs.values(), default=0.0)
        return Proof(
            status,
            worst,
            widest,
            len(found.feeds),
            outputs,
            silent,
            sizes,
            found.kinds,
            reason if status == RANDOM else "",
        )

    def _told(self, name: str, entirely: bool = False) -> bool:
        """Whether a tensor tells; ``entirely``: each of its slices does, on usual inputs.

        Inputs of another scale tell little: a bias is nothing beside large numbers.
        """
        tables = [table for table in self.tables if table.name == name]
        if entirely and tables:
            told = tables[0].told & tables[0].at_once
            return bool(told.all() if self.sides.rounding < 1 else told[0])
        return any(table.told.any() for table in tables)

    def _tells(self, name: str) -> bool:
        """Whether a graph output tells, by itself or by what was compared in its place."""
        if not weighed(self.model, name):
            return True
        if name not in decided(self.model):
            return self._told(name) or self._resolved(name)
        taps = [tap for tap in behind_decisions(self.model, [name]) if self._known(tap)]
        if not taps:
            return self._told(name) or self._resolved(name)
        return all(self._told(tap) or self._resolved(tap) for tap in taps)

    def _known(self, name: str) -> bool:
        return name in self.walk or any(table.name == name for table in self.tables)

    def _retreat(self, found: Findings) -> None:
        """Compare what lies behind the tensors that do not tell, or of which a slice does not."""
        roots = [*self.outputs, *(table.name for table in self.tables)]
        roots += [tap for name in decided(self.model) for tap in behind_decisions(self.model, [name])]
        roots = [name for name in dict.fromkeys(roots) if not self._told(name, entirely=True)]
        self.walk = behind(self.model, roots)
        if not roots:
            return
        self.there = self.there or self.sides.tensors()
        known = {table.name for table in self.tables}
        names = [name for name in self.walk if name in self.there and name not in known]
        if names:
            some = [found.feeds[k] for group in alike(found.feeds) for k in group]
            self.tables = self.tables + ProofRun(self.sides, (), names).findings(some).tables
        for root in roots:
            self._resolved(root)

    def _resolved(self, name: str) -> bool:
        """Whether a tensor tells, or else any of what makes it; what was held against each other on the way counts."""
        if name not in self.resolved:
            self.used.add(name)
            whole = self._told(name, entirely=True)
            inner = [] if whole else [self._resolved(other) for other in self.walk.get(name, ())]
            self.resolved[name] = whole or self._told(name) or any(inner)
        return self.resolved[name]

    def _kind(self, name: str) -> str:
        tables = [table for table in self.tables if table.name == name]
        if any(table.varies.any() for table in tables):
            return "chaotic"
        return tables[0].kind if tables else "empty"
