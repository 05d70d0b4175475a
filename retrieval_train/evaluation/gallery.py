"""What a search found, in pictures: for each domain some queries with their first five hits.

Nobody picks them: half of the shown queries have a right first hit, half a wrong one (as far as there are
such), and within each half those with the smallest hash of their key are taken. So the choice is the same on
any machine, and two models' reports show mostly the same queries.

Shapes: Q queries, K ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from retrieval_train.evaluation.metrics import Truth, per_query
from retrieval_train.evaluation.search import Hits
from retrieval_train.page import Section, render, thumbnail

SHOWN_HITS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Gallery:
    """What is needed to show hits; `query_keys` and `index_keys` are in the order of the vectors."""

    hits: Hits
    truth: Truth
    query_keys: Sequence[str]
    index_keys: Sequence[str]
    labels: Sequence[str]
    """Name of each class id."""
    picture: Callable[[str], bytes]
    """A sample's key -> the bytes of its image file; asked only for what is shown."""
    per_domain: int = 4

    def __post_init__(self) -> None:
        assert len(self.query_keys) == len(self.truth.query_label_Q), (
            len(self.query_keys),
            len(self.truth.query_label_Q),
        )
        assert len(self.index_keys) == len(self.truth.index_label_N), (
            len(self.index_keys),
            len(self.truth.index_label_N),
        )


@dataclass(frozen=True)
class Shown:
    """One picture with what stands under it."""

    key: str
    label: str
    is_right: bool | None = None  # None: the query itself
    score: float | None = None


@dataclass(frozen=True)
class Example:
    query: Shown
    hits: tuple[Shown, ...]
    num_relevant: int
    value: float  # mMP@5

    @property
    def verdict(self) -> str:
        right = sum(bool(hit.is_right) for hit in self.hits)
        return f"{right} of {len(self.hits)} right · {self.num_relevant} to be found · mMP@5 {self.value:.2f}"


def examples(gallery: Gallery) -> dict[str, list[Example]]:
    """domain -> the queries to show, those with a right first hit before the others."""
    values = per_query(gallery.hits, gallery.truth)
    relevant_QK = gallery.truth.is_relevant(gallery.hits)
    found = {}
    for row in np.argsort(gallery.truth.domains, kind="stable").tolist():
        in_domain_Q = gallery.truth.is_judged_Q & (gallery.truth.query_domain_Q == row)
        rows = choose(gallery.query_keys, values["R@1"], in_domain_Q, num=gallery.per_domain)
        if rows:
            found[gallery.truth.domains[row]] = [_example(gallery, q, relevant_QK[q], values["mMP@5"][q]) for q in rows]
    return found


def choose(keys: Sequence[str], first_is_right_Q: np.ndarray, candidate_Q: np.ndarray, *, num: int) -> list[int]:
    """Rows of at most `num` candidates: successes first; half of each kind, or more of one where the other is
    short.
    """
    right = _by_hash(keys, np.flatnonzero(candidate_Q & (first_is_right_Q == 1)))
    wrong = _by_hash(keys, np.flatnonzero(candidate_Q & (first_is_right_Q == 0)))
    num_right = min(len(right), max(num - num // 2, num - len(wrong)))
    return right[:num_right] + wrong[: num - num_right]


def gallery_section(gallery: Gallery) -> Section:
    """The first three domains are unfolded."""
    truth, first_Q = gallery.truth, per_query(gallery.hits, gallery.truth)["R@1"]
    domains = []
    for domain, shown in examples(gallery).items():
        right_Q = first_Q[(truth.query_domain_Q == truth.domains.index(domain)) & truth.is_judged_Q]
        domains.append((domain, f"{int(right_Q.sum())} of {len(right_Q)} first hits right", shown))
    body = render(
        _GALLERY,
        style=Markup(_STYLE),
        domains=domains,
        source=lambda key: thumbnail(gallery.picture(key)),
        breakable=_breakable,
    )
    return Section("What it finds", body, _INTRO)


def _example(gallery: Gallery, q: int, relevant_K: np.ndarray, value: float) -> Example:
    truth = gallery.truth
    shown = []
    for rank in range(min(SHOWN_HITS, len(relevant_K))):
        if (row := int(gallery.hits.id_QK[q, rank])) >= 0:
            label, score = int(truth.index_label_N[row]), float(gallery.hits.score_QK[q, rank])
            name = gallery.labels[label] if label >= 0 else "distractor"
            shown.append(Shown(gallery.index_keys[row], name, bool(relevant_K[rank]), score))
    query = Shown(gallery.query_keys[q], gallery.labels[truth.query_label_Q[q]])
    return Example(query, tuple(shown), int(truth.num_relevant_Q[q]), float(value))


def _by_hash(keys: Sequence[str], rows: np.ndarray) -> list[int]:
    return sorted(rows.tolist(), key=lambda row: (hashlib.sha256(keys[row].encode()).digest(), keys[row]))


def _breakable(text: str) -> Markup:
    """Long names may wrap after a slash and an underscore."""
    return escape(text).replace("/", Markup("/<wbr>")).replace("_", Markup("_<wbr>"))


_INTRO = (
    "Each row is a query and its first five hits in the index of all domains. ✓ and a green frame: the same "
    "class. ✗ and a red frame: another class, or a distractor. Of each domain half of the rows begin with a right "
    "hit and half with a wrong one (more of one kind where the other is short), chosen by a hash of their key."
)

_GALLERY = """
{% macro card(shown, kind, sign, word) %}
<figure class="card {{ kind }}">
<div class="frame">
<img src="{{ source(shown.key) }}" alt="{{ word }}: {{ shown.label }}" loading="lazy"></div>
<figcaption><b><span aria-hidden="true">{{ sign }}</span> {{ breakable(shown.label) }}</b>
<small>{% if shown.score is not none %}{{ "%.3f" | format(shown.score) }} · {% endif %}
{{ breakable(shown.key) }}</small></figcaption></figure>
{% endmacro %}
<style>{{ style }}</style>
{% for domain, caption, examples in domains %}<details class="domain"{% if loop.index <= 3 %} open{% endif %}>
<summary><h3>{{ domain }}</h3> <span>{{ caption }}</span></summary>
{% for example in examples %}<p class="note">{{ example.verdict }}</p><div class="strip">
{{ card(example.query, "query", "?", "query") }}
{% for hit in example.hits %}
{% if hit.is_right %}{{ card(hit, "right", "✓", "right") }}
{% else %}{{ card(hit, "wrong", "✗", "wrong") }}{% endif %}
{% endfor %}</div>{% endfor %}</details>{% endfor %}
"""

_STYLE = """
.domain { border-top: 1px solid var(--line); padding: .3rem 0; } .domain h3 { display: inline; }
.domain summary span { color: var(--soft); font-size: .88rem; margin-left: .4rem; }
.strip { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .7rem; margin-bottom: 1.3rem; }
.card { margin: 0; min-width: 0; }
.frame { aspect-ratio: 1; background: #fff; border: 3px solid; border-radius: 8px; overflow: hidden; }
.frame img { display: block; width: 100%; height: 100%; object-fit: contain; }
.query .frame { border-style: dashed; border-color: var(--soft); }
.right .frame { border-color: var(--right); } .wrong .frame { border-color: var(--wrong); }
.right span { color: var(--right); } .wrong span { color: var(--wrong); }
figcaption { font-size: .8rem; line-height: 1.3; margin-top: .3rem; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; } small { display: block; color: var(--soft); font-size: .72rem; }
@media (max-width: 40rem) { .strip { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
"""
