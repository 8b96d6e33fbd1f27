"""Exceptions of leanonnx, each tied to an exit code of the command line.

    LeanOnnxError
    ├── UserError            exit 2   the request cannot be carried out as it stands
    │   ├── ModelError                the model file is missing, broken or not supported
    │   ├── OptionError               an option has a wrong value, or contradicts another
    │   │   └── ProviderMissing       onnxruntime lacks the provider, or a device for it
    │   ├── DataError                 calibration or training data are missing, broken or do not fit the model
    │   ├── PlanError                 the plan file is broken or belongs to another model
    │   └── OutputError               the result cannot be written
    └── Refusal              exit 1   leanonnx ran, and the answer is no
        ├── ProofFailed               the compressed model does not equal the masked original
        ├── BudgetUnreachable         the channels that cannot be removed exceed the budget
        ├── NotFaster                 the compressed model was not measured to be faster
        │   └── CouldNotTell          the machine was too busy to tell if it is
        ├── ToleranceMissed           no candidate was shown to be within the tolerances
        └── GateFailed                a model did not pass a gate of `leanonnx check`

Every other exception is a bug in leanonnx (exit 3).
"""

from __future__ import annotations

NO = 1
USER_ERROR = 2
BUG = 3
NO_MEMORY = "not enough memory for this model; use a machine with more"
"""Message for a MemoryError, which is reported as a user error."""


class LeanOnnxError(Exception):
    """Base of all errors that leanonnx raises on purpose; ``code`` is the exit code of the command line."""

    code = BUG


class UserError(LeanOnnxError):
    """The request cannot be carried out as it stands; the message names one fix."""

    code = USER_ERROR


class ModelError(UserError):
    """The model file is missing, broken or not supported."""


class OptionError(UserError):
    """An option has a wrong value, or contradicts another."""


class ProviderMissing(OptionError):
    """onnxruntime lacks the provider, or finds no device for it."""


class DataError(UserError):
    """Calibration or training data are missing, broken or do not fit the model."""


class PlanError(UserError):
    """The plan file is broken or belongs to another model."""


class OutputError(UserError):
    """The result cannot be written."""


class Refusal(LeanOnnxError):
    """leanonnx ran to the end, and the answer is no."""

    code = NO


class ProofFailed(Refusal):
    """The compressed model does not equal the original with the removed channels masked."""


class BudgetUnreachable(Refusal):
    """The channels that cannot be removed exceed the budget."""


class NotFaster(Refusal):
    """The compressed model was not measured to be faster than the original."""


class CouldNotTell(NotFaster):
    """The machine was too busy to tell if the compressed model is as fast as it should be."""


class ToleranceMissed(Refusal):
    """No candidate was shown to be within the tolerances."""


class GateFailed(Refusal):
    """A model did not pass a gate."""
