"""What a report says in words: what went, what was cleaned up, what was made up for."""

from __future__ import annotations

from typing import Any

from leanonnx.formatting import counted

CHANNELS = {"unread": "that nothing reads", "constant": "of one number whatever the input"}
"""Reasons for which channels contribute nothing."""
NODES = {
    "unread": ("node", "that nothing reads"),
    "no-op": ("node", "without effect"),
    "branch": ("join", "with an operand that adds nothing"),
    "merged": ("layer", "merged into the weights before"),
}
"""What is cleaned up in a graph, and why."""
BLIND = {"constants": "constant", "means": "by the mean", "merged": "merged into others"}
"""How removed channels are made up for without data."""
NAMED = 5
"""Operators that a line names."""
Row = dict[str, Any]


def remarks(row: Row) -> list[str]:
    """Lines on a compression, from its JSON object."""
    restored = row["weights_from"]
    lines = [f"Weights put in as they were when the plan was made, from {restored}"] if restored else []
    return _gone(row) + folded(row["folded"]) + uncounted(row["uncounted"]) + _made_up_for(row["blind"]) + lines


def changed(row: Row) -> bool:
    """Whether weights are others than those that were proven."""
    if row["weights_from"]:
        return True
    if row["recovery"]:
        return bool(row["recovery"]["kept"])
    return any((row["blind"] or {}).get(way) for way in BLIND)


def folded(names: list[str]) -> list[str]:
    """What was stored in place of what computed it, in words."""
    if not names:
        return []
    return [f"{counted(len(names), 'weight')} computed from constants: folded (stored as the value that is read)"]


def uncounted(names: list[str]) -> list[str]:
    """Operators whose multiply-adds nobody knows, in words."""
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"Not counted, since they are not known: the multiply-adds of {', '.join(names[:NAMED])}{more}"]


def _gone(row: Row) -> list[str]:
    """What contributed nothing, and what was cleaned up in the graph, in words."""
    exact, lines = row["exact"], []
    if exact:
        counts = ", ".join(f"{count} {CHANNELS[reason]}" for reason, count in exact["channels"].items())
        lines.append(f"Removed channels: {counts}")
        lines += [f"Removed layers: {', '.join(exact['layers'])}"] if exact["layers"] else []
    if row["tidied"]:
        told = ((*NODES[reason], count) for reason, count in row["tidied"].items())
        lines.append("Cleaned up: " + ", ".join(f"{counted(count, what)} {why}" for what, why, count in told))
    return lines


def _made_up_for(row: Row | None) -> list[str]:
    """What was done without data."""
    if row is None:
        return []
    found = ", ".join(f"{row[way]} {text}" for way, text in BLIND.items() if row[way])
    declined = "; what rests on a guess of the inputs was left out" if row["declined"] else ""
    return [f"Recovery without data, channels at the layers that read them: {found or 'none'}{declined}"]
