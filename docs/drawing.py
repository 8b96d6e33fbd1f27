"""Parts of a picture as SVG text: lines, boxes, words, and the sheet that they lie on.

A picture brings its own background, and a dark one where the reader prefers that; what colour says is said by shape,
pattern or number as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Point = tuple[float, float]

STYLE = """<style>
.paper{fill:#fff;stroke:#c9ced6}.ink{fill:#1f2328}.faint{fill:#5b6470}.weak{stroke:#5b6470;fill:none}
.pale{stroke:#5b6470;stroke-opacity:.4;fill:none}.mark{stroke:#0b5cad;fill:none}.strong{fill:#0b5cad}.on{fill:#fff}
.node{fill:#fff;stroke:#1f2328;stroke-width:1.6}.kept{fill:#cfe3f7;stroke:#0b5cad;stroke-width:2}
.gone{fill:#fff;stroke:#8a929c;stroke-dasharray:3 3}.cell{fill:#1f2328}.box{fill:#eef1f5;stroke:#c9ced6}
@media (prefers-color-scheme:dark){
.paper{fill:#1c2128;stroke:#444c56}.ink{fill:#e6e9ee}.faint{fill:#a9b2bd}.weak,.pale{stroke:#a9b2bd}
.mark{stroke:#7cb8ff}.strong{fill:#7cb8ff}.on{fill:#1c2128}.node{fill:#1c2128;stroke:#e6e9ee}
.kept{fill:#1d4066;stroke:#7cb8ff}.gone{fill:#1c2128;stroke:#7d8590}.cell{fill:#e6e9ee}.box{fill:#2b323b;stroke:#444c56}
}</style>"""


def picture(size: Point, title: str, parts: Iterable[str]) -> str:
    """A whole SVG file; ``title`` is read out to those who do not see it."""
    width, height = size
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" role="img">\n<title>{title}</title>\n{STYLE}'
    )
    sheet = box((0.5, 0.5), (width - 1, height - 1), "paper", ' rx="6"')
    return "\n".join([head, sheet, *parts, "</svg>"]) + "\n"


def text(at: Point, words: str, kind: str = "ink", size: float = 13, anchor: str = "start") -> str:
    """Words at a point of their base line."""
    place = f'x="{at[0]:.1f}" y="{at[1]:.1f}"'
    return f'<text class="{kind}" {place} font-size="{size:g}" text-anchor="{anchor}">{words}</text>'


def line(points: Sequence[Point], kind: str, width: float = 1.0, dash: str = "", lift: float = 0.0) -> str:
    """A line through points, or between two with its middle lifted."""
    (x, y), (to_x, to_y) = points[0], points[-1]
    path = f"M{x:.1f} {y:.1f}" + "".join(f"L{x:.1f} {y:.1f}" for x, y in points[1:])
    if lift:
        path = f"M{x:.1f} {y:.1f}Q{(x + to_x) / 2:.1f} {(y + to_y) / 2 - 2 * lift:.1f} {to_x:.1f} {to_y:.1f}"
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="{kind}" d="{path}" stroke-width="{width:.2f}"{dashes}/>'


def box(at: Point, size: Point, kind: str, more: str = "") -> str:
    """A rectangle with its corner at a point."""
    place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    return f'<rect class="{kind}" {place}{more}/>'


def disc(at: Point, radius: float, kind: str) -> str:
    """A circle around a point."""
    return f'<circle class="{kind}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}"/>'


def badge(at: Point, words: str) -> str:
    """A number on a disc."""
    return disc(at, 8, "strong") + text((at[0], at[1] + 4), words, "on", 11, "middle")


def plate(at: Point, words: str, wide: float = 36) -> str:
    """Words on a small sheet around a point."""
    return box((at[0] - wide / 2, at[1] - 8), (wide, 16), "paper") + text(
        (at[0], at[1] + 4), words, "ink", 11, "middle"
    )


def cells(squares: Iterable[tuple[Point, float]], side: float) -> Iterable[str]:
    """Squares as dark as their strength (0 to 1), in sixteen shades."""
    shades: dict[int, list[str]] = {}
    for (x, y), strength in squares:
        shades.setdefault(round(15 * strength), []).append(f"M{x:.1f} {y:.1f}h{side:g}v{side:g}h-{side:g}z")
    for shade, found in sorted(shades.items()):
        yield f'<path class="cell" fill-opacity="{0.05 + 0.95 * shade / 15:.2f}" d="{"".join(found)}"/>'
