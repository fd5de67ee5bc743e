"""The report as one page that works offline: jinja2 escapes every name, the plots are inline SVG.

The one script in it, which searches the list of norms and opens what is folded away for print, reads nothing but the
page; without it all is there.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from normdeploy.parity.verdict import Part
from normdeploy.report import batches, view
from normdeploy.report import tuning as tuned
from normdeploy.report.schema import Report

MOST_IN_FULL = 40
"""Norms above which the page counts them by outcome first, and opens to the list."""
MOST_NORMS = 1000
"""Rows of the list of norms; the rest is counted and stands in report.json, so that the page stays small."""
MOST_JUDGEMENTS = 40
"""Rows of the table of parity, the worst first."""
MOST_LAYERS = 200
"""Rows of the table of engine layers."""


def render(report: Report) -> str:
    """Return the page, as text. It refers to no other file and no address."""
    from normdeploy.report import plots  # Matplotlib, which a bundle that only runs does without

    norms = report.ledger.norms()
    maps = [entry for entry in report.ledger.entries if not entry.norm]
    return _template().render(
        report=report,
        norms=norms,
        maps=maps,
        counts=view.outcome_counts(norms),
        judgements=view.by_severity(report.parity, "runtime") if report.parity else [],
        parts=_parts(report),
        rounding_judgements=view.by_severity(report.parity, "rounding") if report.parity else [],
        graph_judgements=view.by_severity(report.parity, "graph") if report.parity else [],
        parity_plot=Markup(plots.parity(report.parity)) if report.parity else "",
        latency_plot=Markup(plots.latency(report.latency)) if report.latency else "",
        most_in_full=MOST_IN_FULL,
        most_plotted=plots.MOST_JUDGEMENTS,
        most_norms=MOST_NORMS,
        most_judgements=MOST_JUDGEMENTS,
        most_layers=MOST_LAYERS,
        view=view,
        tuned=tuned,
        batches=batches,
    )


def _parts(report: Report) -> list[tuple[Part, str]]:
    """Return the parts of parity that have a card, with its heading."""
    named: dict[Part, str] = {
        "graph": "Parity of the graph",
        "rounding": "Rounding",
        "runtime": "Parity of the runtime",
    }
    rounded = report.parity is not None and report.parity.of("rounding")
    return [(part, name) for part, name in named.items() if part != "rounding" or rounded]


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("normdeploy.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: view.plain(value) if type(value) is str else value,  # Markup is ours, and stays
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sig"] = view.sig
    return environment.get_template("template.html.j2")
