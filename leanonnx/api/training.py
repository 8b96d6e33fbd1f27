"""``finetune`` in Python: training of a compressed model; needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from leanonnx.api.keywords import budget_limits, compress_options
from leanonnx.api.progress import listening
from leanonnx.api.sources import optional_path, several
from leanonnx.checks import check_choice, check_positive, exactly_one
from leanonnx.commands.finetune.options import FinetuneOptions, TrainingSettings
from leanonnx.commands.finetune.rows import FinetuneReport
from leanonnx.commands.finetune.strategies import Pairing, SignalOptions, Strategy
from leanonnx.data.images import ImageFormat
from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT
from leanonnx.errors import OptionError
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.ranking.criteria import Chains, Importance, Method
from leanonnx.reporting.encoding import Json, to_json
from leanonnx.runtime.observation import Shapes
from leanonnx.selection.metrics import Budget
from leanonnx.spelling import option
from leanonnx.system.clock import Progress
from leanonnx.system.gpu import Device
from leanonnx.system.notebook import ResultTable, View, result_csv, result_frame, result_html
from leanonnx.system.outputs import StrPath


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TrainingResult:
    """A trained model.

    Attributes:
        path: its file.
        before, after: deviations from the reference on the held-out samples, of the input and of the result.
        losses: training and held-out loss of each epoch.
        best_epoch: the epoch whose weights were written; 0 for the input's.
        warnings: remarks on the training.
        report: what ``leanonnx finetune`` prints.
    """

    path: Path
    before: Fidelity
    after: Fidelity
    losses: tuple[tuple[float, float], ...]
    best_epoch: int
    warnings: tuple[str, ...]
    report: FinetuneReport

    def to_dict(self) -> Json:
        """The JSON object that ``leanonnx finetune --json`` prints."""
        return to_json(self.report)

    def __repr__(self) -> str:
        return f"<{self.path}: epoch {self.best_epoch} of {len(self.losses)}>"

    def _view(self) -> View:
        losses: tuple[dict[str, object], ...] = tuple(
            {"epoch": k, "training_loss": train, "held_out_loss": held}
            for k, (train, held) in enumerate(self.losses, 1)
        )
        both = {"before": self.before, "after": self.after}
        deviation: tuple[dict[str, object], ...] = tuple(
            {"training": name, **row} for name, fidelity in both.items() for row in fidelity.rows()
        )
        return View(
            line=repr(self).strip("<>"),
            mood="plain" if self.report.training.headline is None else "bad",
            tables=(
                ResultTable("losses", losses, folded=True),
                ResultTable("deviation", deviation),
                ResultTable("metric", self.after.metric_rows()),
            ),
            notes=self.warnings,
        )

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv


def finetune(
    model: StrPath,
    out: StrPath,
    *,
    data: StrPath,
    teacher: StrPath | None = None,
    strategy: Strategy = "school",
    train: str | Sequence[str] = (),
    hold: str | Sequence[str] = (),
    epochs: int | None = None,
    minutes: float | None = None,
    patience: int | None = None,
    lr: float = 2e-3,
    batch: int = 32,
    augment: bool = True,
    device: Device = "cpu",
    amp: bool = False,
    checkpoint: StrPath | None = None,
    resume: bool = False,
    operator: StrPath | None = None,
    adjoint: StrPath | None = None,
    mask: str | None = None,
    measurement: str | None = None,
    loss_share: float | None = None,
    pairing: Pairing | None = None,
    steps: int | None = None,
    keep: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
    method: Method | Importance = "auto",
    chains: Chains = "cover",
    ignore: str | Sequence[str] = (),
    keep_steps: StrPath | None = None,
    shape: Shapes | None = None,
    images: ImageFormat = DEFAULT_IMAGE_FORMAT,
    library: StrPath | Sequence[StrPath] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainingResult | None:
    """Train the weights of a compressed model; names, structure and interface stay the same.

    In a distributed training, the processes that do not write the result return None.

        leanonnx.compress("in.onnx", "small.onnx", keep=0.25)
        trained = leanonnx.finetune("small.onnx", "out.onnx", data="inputs.npz", teacher="in.onnx", minutes=20)

    Args:
        model, out: path of the model, and of the result.
        data, images: file or folder of inputs, with what the strategy learns from; the format of images among them.
        teacher, strategy: path of the original; learn from it, from labels, from noisy images, from reconstructions of
            splits, or from incomplete measurements.
        train, hold: patterns of names of weights, or of nodes that read them: train what would be held by default
            (operators of physics, numbers of the architecture), hold what would be trained.
        epochs, minutes, patience: limits of the training; epochs without gain on the held-out samples to stop after.
        lr, batch, augment, device, amp: highest learning rate; samples in a step; flip and shift images; device;
            half precision. ``checkpoint``, ``resume``: file of the state of the training; True continues from it.
        operator, adjoint: for "measurement", ONNX files, or two tensors of the model as ``"FROM:TO"``: from image to
            measurement; from measurement to input.
        mask, measurement, loss_share: names of these inputs or arrays; share of the measurement that the loss is for.
        pairing: for "noise2inverse", numbers of splits whose mean is input and target.
        steps, keep, macs, params, bytes, method, chains, ignore: compress the model in so many steps to a fraction, and
            train after each.
        keep_steps: folder for the models of the steps before the last.
        shape, library: as in ``compress``.
        seed: of order, augmentation and masks.
        progress: called with each stage and epoch; None: the log, or a bar in a notebook.

    Raises:
        UserError: torch is not installed, bad model, option, data or output path, or an operator that torch cannot run.
        ProofFailed: torch and onnxruntime disagree about the model; nothing is written.
    """
    if find_spec("torch") is None:
        raise OptionError("finetune needs torch; install it with pip install torch")
    with listening(progress) as listener:
        return _finetune({**locals(), "progress": listener})


def _finetune(given: Mapping[str, Any]) -> TrainingResult | None:
    """Train as the keywords of ``finetune`` say."""
    from leanonnx.commands.finetune import driver, report, steps as stepwise  # noqa: I001 - needs the extra

    check_training_numbers(given["lr"], given["minutes"])
    steps, keep_steps, progress = given["steps"], given["keep_steps"], given["progress"]
    budget = stepwise_budget(budget_limits(given), steps)
    out, options = Path(given["out"]), _training_options(given)
    places = (Path(given["model"]), out, optional_path(given["teacher"]), Path(given["data"]))
    if budget is None or steps is None:
        if keep_steps is not None:
            example = f"{option('steps', 5)} {option('keep', 0.25)}"
            raise OptionError(f"{option('keep_steps')} goes with {option('steps')}, for example {example}")
        result = driver.run_finetune(*places, options, progress)
        return None if result is None else _result(out, result, report.finetune_report(result))
    names = ("method", "chains", "ignore", "seed", "images")
    kept = {"calib": given["data"], **{name: given[name] for name in names}}
    compression = compress_options(kept, budget=budget, recover="auto")
    schedule = stepwise.PruningSchedule(steps, compression, optional_path(keep_steps))
    stepped = stepwise.finetune_in_steps(*places, options, schedule, progress)
    if stepped is None:
        return None
    return _result(out, stepped.steps[-1].result, report.finetune_steps_report(stepped))


def _training_options(given: Mapping[str, Any]) -> FinetuneOptions:
    """The options of a training from the keywords of ``finetune``."""
    names = ("epochs", "batch", "minutes", "patience", "seed", "amp", "resume")
    settings = {name: given[name] for name in names}
    check_choice("strategy", given["strategy"], Strategy)
    if given["pairing"] is not None:
        check_choice("pairing", given["pairing"], Pairing)
    signal = {field.name: given[field.name] for field in fields(SignalOptions)}
    signal |= {name: str(signal[name]) for name in ("operator", "adjoint") if signal[name] is not None}
    return FinetuneOptions(
        strategy=given["strategy"],
        train=several(given["train"], str),
        hold=several(given["hold"], str),
        signal=SignalOptions(**signal),
        shapes=given["shape"] or {},
        images=given["images"],
        augment=given["augment"],
        device=given["device"],
        libraries=several(given["library"], Path),
        settings=TrainingSettings(rate=given["lr"], checkpoint=optional_path(given["checkpoint"]), **settings),
    )


def check_training_numbers(lr: float, minutes: float | None) -> None:
    """Refuse a learning rate or a time that is out of range.

    Raises:
        OptionError: one is.
    """
    if not 0 < lr < 1:
        example = option("lr", 0.002)
        raise OptionError(f"{option('lr', float(lr))}: expected a number above 0 and below 1, for example {example}")
    if minutes is not None:
        check_positive("minutes", minutes, 20)


def stepwise_budget(given: Mapping[str, float | None], steps: int | None) -> Budget | None:
    """The budget of a training in steps; None for no steps.

    Raises:
        OptionError: a fraction without steps, or steps without just one fraction.
    """
    asked = [name for name, value in given.items() if value is not None]
    if steps is None and asked:
        raise OptionError(
            f"{option(asked[0])} goes with {option('steps')}; compress first, or add {option('steps', 'N')}"
        )
    if steps is None:
        return None
    return Budget.of_option(*exactly_one(given, f"{option('steps', 5)} {option('keep', 0.25)}"))


def _result(path: Path, result: Any, report: FinetuneReport) -> TrainingResult:
    """The public result from the driver's ``FinetuneResult``, whose type needs torch."""
    trained = result.training
    return TrainingResult(
        path=path,
        before=result.before,
        after=result.after,
        losses=tuple(trained.history),
        best_epoch=trained.best_epoch,
        warnings=result.warnings,
        report=report,
    )
