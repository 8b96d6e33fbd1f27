"""Types of operator facts: the family of an operator, its properties, the slots of its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, auto

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators."""
NCHWC = "com.microsoft.nchwc"
"""The domain of onnxruntime's operators on tensors in blocks of channels, which only its optimiser writes."""


class Family(Enum):
    """The kind of computation of an operator."""

    CONVOLUTION = auto()
    TRANSPOSED_CONVOLUTION = auto()
    DEFORMABLE_CONVOLUTION = auto()
    GEMM = auto()
    MATMUL = auto()
    PACKED_MATMUL = auto()
    """A matrix product whose weight is packed, a few bits per element."""
    EINSUM = auto()
    RECURRENT = auto()
    ATTENTION = auto()
    NORMALIZATION = auto()
    SOFTMAX = auto()
    UNARY = auto()
    """A function of each number by itself."""
    PARAMETRIC = auto()
    """A function of each number by itself, with a parameter per channel."""
    JOIN = auto()
    """A function of several tensors, position by position, with broadcasting."""
    REDUCTION = auto()
    POOLING = auto()
    SAMPLING = auto()
    """Interpolation between positions."""
    RESHAPE = auto()
    """Other axes, the data in the same order."""
    MOVEMENT = auto()
    ASSEMBLY = auto()
    """Concatenation and its inverse."""
    SCATTER = auto()
    SELECTION = auto()
    """Indices, comparisons with a maximum, and other answers that are no floats."""
    QUANTIZER = auto()
    RANDOM = auto()
    TRANSFORM = auto()
    """A linear transform without weights."""
    SHAPE = auto()
    """The shape of a tensor, not its data."""
    SEQUENCE = auto()
    """Sequences and optionals, which are no tensors."""
    CONTROL = auto()
    """Operators that run subgraphs."""
    OTHER = auto()


class Trait(Flag):
    """A property that an operator has or has not."""

    NONE = 0
    LINEAR = auto()
    """Output = weight × input + bias, in floats."""
    KERNELS = auto()
    """The kernels of its weight count, whether they can be pruned or not."""
    NCHWC_KERNELS = auto()
    """Runs in NCHWc kernels of onnxruntime's CPU provider: a started block of channels costs as much as a full one."""
    BLOCK_WIDTHS = auto()
    """The channels that it reads and writes are kept in whole blocks.

    A choice, not a property of one provider: GPUs compute all convolutions in blocks, and onnxruntime's CPU kernels of
    QLinearConv are faster at multiples of 4 and 16 channels, but those of ConvTranspose run any width equally well.
    """
    MIXES_CHANNELS = auto()
    """Mixes channels by a weight, or may do so."""
    NO_WEIGHT = auto()
    """Never has a weight that mixes channels, in whatever domain it is defined."""
    NO_PRODUCTS = auto()
    """An operator of onnxruntime without a rule whose multiply-adds are negligible."""
    POINTWISE = auto()
    """Each number of the output depends on the numbers at its own position alone."""
    KEEPS_ZERO = auto()
    """Outputs zeros for a channel of zeros; what it adds is one number per channel, which is removed with it."""
    JOINS_ZEROS = auto()
    """Outputs zeros where all operands are zeros."""
    ZERO_WITH_FIRST = auto()
    """Outputs zeros where the first operand is zero, as long as the second is none that forbids it."""
    PASSES_CONSTANT = auto()
    """A channel that is one number at all positions stays that number."""
    ACCUMULATES = auto()
    """Sums over positions or windows; of channels that are one number at all positions, zeros stay zeros."""
    BORDERED = auto()
    """Passes channels on, perhaps with a border of another number."""
    PASSES_FIRST = auto()
    """Outputs its first input, unless it trains."""
    CAN_EMPTY = auto()
    """A tensor that it reads or writes can be removed as a whole."""
    SAME_SIZE = auto()
    """The output has the sizes of the first input."""
    INJECTIVE = auto()
    """Different floats in the only computed input give different floats in the output."""
    ADDS = auto()
    """Adds operands up, so that they share the energy of the output."""
    ARITHMETIC = auto()
    """Addition, subtraction, multiplication, division."""
    COMMUTES = auto()
    """Its two operands may be exchanged."""
    SCALES = auto()
    """Multiplies its first operand by the second or by its inverse."""
    DIVIDES = auto()
    """Divides: integers must not be divided by zero."""
    EXTREME = auto()
    """Takes a maximum or minimum."""
    NORM = auto()
    """Takes a norm, or a sum of squares."""
    WHOLE_SUM = auto()
    """Takes a sum, mean or norm over whole axes, to which zeros contribute nothing but their number."""
    HOMOGENEOUS = auto()
    """A channel of its first input that is multiplied by a positive number multiplies the output's channel by it."""
    MOVES = auto()
    """Moves the data of its first input, and computes nothing."""
    CARRIES = auto()
    """A constant that is read through it is the same constant in another layout or type."""
    STEP = auto()
    """Piecewise constant, or random, though the output may be floats."""
    DISCRETE = auto()
    """Never outputs floats."""
    INTEGER_KERNELS = auto()
    """Has a kernel for 8-bit integers, in which its data and its weight may be given."""
    PASSES_INTEGERS = auto()
    """Reads and writes 8-bit integers between such operators, so that nothing has to be converted to floats."""
    BOUNDS_INTEGERS = auto()
    """Becomes part of the integer layer before it, whose output its bounds limit."""
    PUT_INTO_INTEGERS = auto()
    """onnxruntime gives its float weight integers of one scale where it reads and writes integers."""
    QUANTISED = auto()
    """Makes, reads or computes in integers that stand for floats."""
    INTEGER_DATA = auto()
    """Computes with the integers in its first slot."""
    PER_CHANNEL = auto()
    """Constants give the scale and the shift of each channel."""
    PROBABILITY = auto()
    """The output is on the scale of 1, however small it is."""
    COMPARED_INSIDE = auto()
    """Fine-tuning compares its outputs between the original and the compressed network."""


PRODUCT_FAMILIES = (
    *(Family.CONVOLUTION, Family.TRANSPOSED_CONVOLUTION, Family.DEFORMABLE_CONVOLUTION, Family.GEMM, Family.MATMUL),
    *(Family.PACKED_MATMUL, Family.RECURRENT, Family.ATTENTION),
)
"""Families whose operators spend their time on multiply-adds."""


@dataclass(frozen=True)
class OperatorFacts:
    """Facts about one operator.

    Attributes:
        family: what it computes.
        traits: its properties.
        weight: the slot of its weight; None where it has none, or more than one.
        bias: the slot of its bias; None without one.
        learned: the slots whose constants are learned.
    """

    family: Family
    traits: Trait = Trait.NONE
    weight: int | None = None
    bias: int | None = None
    learned: tuple[int, ...] = ()
