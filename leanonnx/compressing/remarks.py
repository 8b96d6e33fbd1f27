"""What a report says in words: what went, what was cleaned up, what was made up for."""

from __future__ import annotations

from typing import Any

WHY = {
    "unread": "that nothing reads",
    "constant": "that hold one number whatever the input",
    "no-op": "nodes that put out what they read",
    "branch": "joins with an operand that adds nothing",
    "merged": "layers merged into the weights before them",
}
"""Reasons for which channels and nodes go."""
BLIND = {"constants": "constant", "means": "by their mean", "merged": "merged into others"}
"""How removed channels are made up for without data."""
Row = dict[str, Any]


def remarks(row: Row) -> list[str]:
    """Lines on a compression, from its JSON object."""
    return _gone(row) + _made_up_for(row["blind"])


def changed(row: Row) -> bool:
    """Whether weights are others than those that were proven."""
    if row["recovery"]:
        return bool(row["recovery"]["kept"])
    return any((row["blind"] or {}).get(way) for way in BLIND)


def _gone(row: Row) -> list[str]:
    """What contributed nothing, and what was cleaned up in the graph, in words."""
    exact, lines = row["exact"], []
    if exact:
        counts = ", ".join(f"{count} {WHY[reason]}" for reason, count in exact["channels"].items())
        lines.append(f"Removed channels: {counts}")
        lines += [f"Removed layers: {', '.join(exact['layers'])}"] if exact["layers"] else []
    if row["tidied"]:
        lines.append("Cleaned up: " + ", ".join(f"{count} {WHY[reason]}" for reason, count in row["tidied"].items()))
    return lines


def _made_up_for(row: Row | None) -> list[str]:
    """What was done without data."""
    if row is None:
        return []
    found = ", ".join(f"{row[way]} {text}" for way, text in BLIND.items() if row[way])
    declined = "; what rests on a guess of the inputs was left out" if row["declined"] else ""
    return [f"Recovery without data, channels at the layers that read them: {found or 'none'}{declined}"]
