"""The tests of the smoke subset: a little of everything, in seconds.  python -m pytest -m smoke -n auto -q"""

from __future__ import annotations

SMOKE: dict[str, tuple[str, ...]] = {
    "test_layers.py": (
        *("test_every_room", "test_imports_go_down", "test_no_modules", "test_packages", "test_nothing_imports"),
        *("test_libraries", "test_pure", "test_files", "test_functions"),
    ),
    "test_contract.py": ("",),
    "rules/test_rules.py": (
        "test_every_",
        *(f"test_channels_can_go[{op}-" for op in ("Conv", "Gemm", "Concat")),
        *(f"test_channels_go_where_the_rule_says[{op}-" for op in ("Conv", "Concat")),
        *(f"test_uncovered_uses_are_pinned[{op}-" for op in ("Conv", "Reshape")),
        *(f"test_wrong_rules_are_caught[{op}]" for op in ("Conv", "Concat")),
    ),
    "test_mutants.py": ("test_wrong_rule_is_caught",),
    "test_masked_equals_compact.py": ("test_networks_that_once_went_wrong",),
    "test_chains.py": ("test_sweeps", "test_best_chain", "test_rows", "test_fixed_edges", "test_oracle_kills_mutants"),
    "test_norms.py": ("test_norm_is", "test_three_axes", "test_transposed_convolution", "test_oracle"),
    "test_cli.py": ("test_json_of_compress", "test_budgets_are_kept"),
    "test_cli_files.py": ("test_plan_describes", "test_external_data_stay"),
    "test_cli_help.py": ("test_public_names", "test_help"),
    "test_bad_options.py": ("test_not_exactly_one_budget", "test_shape["),
    "test_bad_input.py": tuple(f"test_broken_graph[{fault}]" for fault in ("dangling", "cyclic", "wrong_dims")),
}
"""File below tests/ → prefixes of the names of its tests in the subset."""
