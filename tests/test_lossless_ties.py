"""``--exact`` where channels are tied: branches, groups, sums, shared weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.soft_pruned import LARGE, edited, framed, gone, minimal, put, residual, sizes, soft_pruned


@pytest.mark.parametrize("where", [LARGE, {"batch": "N", "size": "S"}], ids=["fixed", "free"])
def test_a_branch_of_zeros_is_removed_as_a_whole(where: Mapping[str, object], tmp_path: Path) -> None:
    result, after = minimal(edited(residual(where), r=put(0, slice(None))), tmp_path)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Relu", "Conv"]
    assert set(sizes(after)) == {"w", "b", "v"}
    assert result.tidied["branch"] == 1
    assert result.exact is not None and result.exact["layers"] == ["E", "G", "A"]
    assert result.after.kernels == 8 * 2 + 3 * 8


def test_a_branch_is_removed_if_all_that_is_read_of_it_is_zero(tmp_path: Path) -> None:
    proto = edited(residual(), r=put(0, slice(2, None)), v=put(0, slice(None), [0, 1]))
    _, after = minimal(proto, tmp_path)
    assert sizes(after) == {"w": [6, 2, 3, 3], "b": [6], "v": [3, 6, 1, 1]}


def test_tied_channels_stay_together(tmp_path: Path) -> None:
    """Zeros in one operand of a sum do not free the other's; zeros in both do."""
    assert gone(minimal(edited(residual(), r=put(0, [1, 2])), tmp_path)[0]) == (0, 0)
    both = edited(residual(), r=put(0, [1, 2]), w=put(0, [2, 3]), b=put(0, [2, 3]))
    result, after = minimal(both, tmp_path)
    assert gone(result) == (0, 1)
    assert sizes(after)["r"] == [7, 4, 1, 1]


def test_a_sum_that_cancels_is_no_branch_of_zeros(tmp_path: Path) -> None:
    """One and minus one add up to nothing that anything reads, yet neither of them is nothing: the bias has both."""
    proto = framed("k = Conv <pads = [1, 1, 1, 1]> (x, w2, b2) d = Add (c, k)", "float[8, 2, 3, 3] w2, float[8] b2")
    proto = edited(soft_pruned(proto, 1, bias=1), w2=put(0, slice(None)), b2=put(0, slice(None)))
    result, after = minimal(edited(proto, b2=put(-1, 1)), tmp_path)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Conv"]
    assert result.tidied["constant"] == 1
    assert "branch" not in result.tidied


def test_operands_of_a_concat(tmp_path: Path) -> None:
    """Unread channels of an operand are removed; an unread operand is removed with everything that computes it.

    Both copies of channel 2 are unread, and one of channel 7.
    """
    body = "e = Conv <pads = [1, 1, 1, 1]> (x, k) f = Relu (e) g = Conv (f, i) d = Concat <axis = 1> (c, g, c)"
    proto = framed(body, "float[5, 2, 3, 3] k, float[4, 5, 1, 1] i", read=20)
    proto = edited(proto, v=put(0, slice(None), [2, *range(8, 12), 14, 19]))
    result, after = minimal(proto, tmp_path)
    assert (sizes(after)["v"][1], sizes(after)["w"][0]) == (13, 7)
    assert "k" not in sizes(after)
    assert result.exact is not None and result.exact["layers"] == ["E", "G"]


def test_groups_are_removed_whole_or_not_at_all(tmp_path: Path) -> None:
    grouped = framed("r = Relu (c) d = Conv <group = 4> (r, k)", "float[8, 2, 1, 1] k")
    assert gone(minimal(soft_pruned(grouped, 0, 1, 4), tmp_path)[0]) == (0, 1)


def test_no_tensor_loses_its_last_channel(tmp_path: Path) -> None:
    proto = soft_pruned(framed("d = Relu (c)"), *range(8))
    _, after = minimal(proto, tmp_path)
    assert sizes(after)["w"] == [1, 2, 3, 3]


def test_shared_weights(tmp_path: Path) -> None:
    """A filter that two layers share is not needed only if neither needs it."""
    body = "f = Conv <pads = [1, 1, 1, 1]> (x2, w, b) g = Conv (f, k) h = Conv (c, v2) d = Concat <axis = 1> (g, h)"
    proto = framed(f"x2 = Neg (x) {body}", "float[4, 8, 1, 1] k, float[4, 8, 1, 1] v2")
    one = edited(proto, k=put(0, slice(None), [3, 5]))
    assert gone(minimal(one, tmp_path)[0]) == (0, 0)
    assert gone(minimal(edited(one, v2=put(0, slice(None), [5, 6])), tmp_path)[0]) == (1, 0)
