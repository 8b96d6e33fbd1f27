"""Gains of operators that scale channels, where running the operator cannot show them: it normalises as well."""

from __future__ import annotations

import numpy as np
import pytest

from tests.calibrated import analysed, net

SCALES = np.array([0.5, -2.0, 3.0], np.float32)
TEXT = "{0.5, -2, 3}"
NORMALIZATIONS = {
    "InstanceNormalization": "n = InstanceNormalization (h, s, t)",
    "BatchNormalization in training": "n, p, q = BatchNormalization <training_mode = 1> (h, s, t, m, v)",
}


@pytest.mark.parametrize("body", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_scales_are_the_gains_of_their_channels(body: str) -> None:
    constants = f"float[3] s = {TEXT}, float[3] t, float[3] m, float[3] v = {{1, 4, 9}}"
    text = f"h = Conv (x, w) {body} y = Conv (n, o)"
    dag = analysed(
        net("(float[1,2,4,4] x) => (float[1,2,4,4] y)", f"float[3,2,1,1] w, {constants}, float[2,3,1,1] o", text)
    )
    (edges,) = (edges for node, edges in dag.fixed_edges if dag.model.proto.graph.node[node].output[0] == "n")
    assert edges.gains is not None
    np.testing.assert_allclose(edges.gains, np.abs(SCALES))


def test_a_negative_variance_counts_as_none() -> None:
    """A network that outputs nothing finite is still ranked by numbers."""
    dag = analysed(
        net(
            "(float[1,2,4,4] x) => (float[1,2,4,4] y)",
            f"float[3] s = {TEXT}, float[3] t, float[3] m, float[3] v = {{-0.5, 0, 3}}, "
            "float[3,2,1,1] w, float[2,3,1,1] o",
            "h = Conv (x, w) n = BatchNormalization <epsilon = 1.0> (h, s, t, m, v) y = Conv (n, o)",
        )
    )
    (edges,) = (edges for node, edges in dag.fixed_edges if dag.model.proto.graph.node[node].output[0] == "n")
    np.testing.assert_allclose(edges.gains, np.abs(SCALES) / [1, 1, 2])
