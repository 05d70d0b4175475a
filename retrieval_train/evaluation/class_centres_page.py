"""Class centres in pictures: the classes that lie closest to each other, and the images that lie farthest from their own.

Legend: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from retrieval_train import page
from retrieval_train.evaluation.class_centres import BIN_DEGREES, Fit

CLOSE_PAIRS, FARTHEST = 30, 60
"""Shown on the page."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Shown:
    """What is needed to show classes and images; all three functions are asked only for what is shown."""

    names: Sequence[str]
    """Of the classes."""
    fit: Fit
    close: Sequence[tuple[int, int, float]]
    """Pairs of classes and their cosines, the closest first."""
    threshold_degrees: float
    images_of: Callable[[int], Sequence[int]]
    """Sample numbers of a class, to choose examples from."""
    key_of: Callable[[int], str]
    """A sample's number -> its key."""
    picture: Callable[[int], bytes]
    """A sample's number -> the bytes of its image file."""

    def examples(self, number: int, *, num: int, without: int = -1) -> list[int]:
        """The most typical image of a class, then others that are spread evenly over it."""
        typical = int(self.fit.typical_C[number])
        others = [one for one in self.images_of(number) if one not in (typical, without)]
        first = [typical] if typical not in (-1, without) else []
        step = max(1, len(others) // max(1, num))
        return (first + others[::step])[:num]


def sections(shown: Shown, facts: dict[str, Any], command: str) -> list[page.Section]:
    return [_close(shown), _far(shown), _angles(shown), page.Section("Numbers", page.facts(facts) + _made(command))]


def lead(shown: Shown) -> str:
    """The page in one sentence."""
    pairs, far = int(shown.fit.images_C.sum()), len(shown.fit.far)
    text = f"Of {pairs:,} training images of {len(shown.names):,} classes {far:,} lie more than {shown.threshold_degrees:g} "
    text += "degrees from the centre of their class"
    if not shown.close:
        return f"{text}."
    one, other, cosine = shown.close[0]
    return f"{text}. The closest classes are {shown.names[one]} and {shown.names[other]} (cosine {cosine:.3f})."


def _close(shown: Shown) -> page.Section:
    rows = []
    for one, other, cosine in shown.close[:CLOSE_PAIRS]:
        cards = [
            _card(shown, number, kind, shown.names[which], "")
            for which, kind in ((one, "one"), (other, "other"))
            for number in shown.examples(which, num=3)
        ]
        rows.append((f"cosine {cosine:.3f}, {_degrees(cosine):.0f} degrees", cards))
    intro = (
        "Pairs of classes whose centres have the largest cosines (of sub-centres, the closest two); to the left the one, to "
        "the right the other. Two names for one thing are found here, and the things that the model takes for one."
    )
    return page.Section("Classes that lie closest", _strips(rows), intro)


def _far(shown: Shown) -> page.Section:
    rows = []
    for far in shown.fit.far[:FARTHEST]:
        own, title = shown.names[far.own], f"{far.angle:.0f} degrees from {shown.names[far.own]}"
        cards = [_card(shown, far.number, "wrong", own, shown.key_of(far.number))]
        cards += [_card(shown, n, "one", own, "") for n in shown.examples(far.own, num=2, without=far.number)]
        if far.nearest >= 0:
            near = shown.names[far.nearest]
            title += f"; nearest other class {near}, {_degrees(far.cosine):.0f} degrees"
            cards += [
                _card(shown, n, "other", near, "") for n in shown.examples(far.nearest, num=2, without=far.number)
            ]
        rows.append((title, cards))
    intro = (
        f"Images that lie more than {shown.threshold_degrees:g} degrees from their class's dominant sub-centre (its centre, "
        "where there is one), the farthest first: in the red frame; behind it images of its own class and, dashed, of the "
        "nearest other one. An image that is nearer to that one may have the wrong label. All are in outliers.tsv."
    )
    return page.Section("Images far from their class", _strips(rows), intro if rows else "There are none.")


def _angles(shown: Shown) -> page.Section:
    degrees = [BIN_DEGREES * (at + 0.5) for at in range(len(shown.fit.angles))]
    series = {"images": (degrees, [float(count) for count in shown.fit.angles])}
    marks = {"threshold": shown.threshold_degrees}
    xlabel = "degrees to the dominant sub-centre"
    intro = (
        "Where most images lie far out, the model has not learnt its classes, and a distance says little of a label."
    )
    return page.Section("All images", page.curve(series, ylabel="images", xlabel=xlabel, marks=marks), intro)


def _degrees(cosine: float) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def _made(command: str) -> Markup:
    return page.render("<h3>How to get it again</h3>") + page.command(command)


def _card(shown: Shown, number: int, kind: str, name: str, key: str) -> tuple[str, str, Markup, Markup]:
    return kind, page.thumbnail(shown.picture(number)), _breakable(name), _breakable(key)


def _strips(rows: Sequence[tuple[str, Sequence[tuple[str, str, Markup, Markup]]]]) -> Markup:
    return page.render(_STRIPS, rows=rows, style=Markup(_STYLE))


def _breakable(text: str) -> Markup:
    """Long names may wrap after a slash and an underscore."""
    return escape(text).replace("/", Markup("/<wbr>")).replace("_", Markup("_<wbr>"))


_STRIPS = """
<style>{{ style }}</style>
{% for title, cards in rows %}<p class="note">{{ title }}</p><div class="strip">
{% for kind, source, name, key in cards %}
<figure class="card {{ kind }}"><div class="frame"><img src="{{ source }}" alt="{{ name }}" loading="lazy"></div>
<figcaption><b>{{ name }}</b>{% if key %}<small>{{ key }}</small>{% endif %}</figcaption></figure>
{% endfor %}</div>
{% endfor %}
"""

_STYLE = """
.strip { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .7rem; margin-bottom: 1.3rem; }
.card { margin: 0; min-width: 0; }
.frame { aspect-ratio: 1; background: #fff; border: 3px solid; border-radius: 8px; overflow: hidden; }
.frame img { display: block; width: 100%; height: 100%; object-fit: contain; }
.one .frame { border-color: var(--line); } .other .frame { border-color: var(--soft); border-style: dashed; }
.wrong .frame { border-color: var(--wrong); }
figcaption { font-size: .8rem; line-height: 1.3; margin-top: .3rem; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; } small { display: block; color: var(--soft); font-size: .72rem; }
@media (max-width: 40rem) { .strip { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
"""
