"""The report as one self-contained HTML page, and as Markdown for the note of the tracking run."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from tasks.dataset.prepared import SPLITS
from tasks.outcomes.attack_outputs import without_independent_surrogates
from tasks.records.vocabulary import AS_TRAINED
from tasks.reporting import interactive
from tasks.reporting.curves import eps_of
from tasks.reporting.drawings import RenderedFigure, render
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section, point_of
from tasks.reporting.sections.features import SPACES
from tasks.reporting.templating import environment


def render_figures(sections: Sequence[Section]) -> dict[str, RenderedFigure]:
    """Render the figures of all sections, by name."""
    return {drawing.name: render(drawing) for section in sections for drawing in section.drawings}


def html(results: Results, headline: Headline, sections: Sequence[Section], figures: dict[str, RenderedFigure]) -> str:
    """Return the whole page.

    Args:
        results: outputs of the earlier steps.
        headline: headline result.
        sections: all sections, in the order of the page.
        figures: rendered figures of the sections, by name.
    """
    templates = environment()
    bodies = {
        section.key: Markup(  # noqa: S704  the template escapes  # nosec B704
            templates.get_template(f"sections/{section.key.replace('-', '_')}.html.j2").render(
                section.values, figures=figures, headline=headline
            )
        )
        for section in sections
    }
    scripts = interactive.scripts()
    return templates.get_template("report.html.j2").render(
        **_summary(results, headline, sections),
        sections=sections,
        bodies=bodies,
        scripts=scripts,
        digests=" ".join(map(interactive.digest, scripts)),
        interactive_data=interactive.as_json(_interactive(results, headline, figures)),
    )


def markdown(results: Results, headline: Headline, sections: Sequence[Section], limit: int) -> str:
    """Return headline, scores, claims, data and checks as Markdown, below ``limit`` characters.

    The main figures come first. If the text is too long, the last sections are left out, and their titles are named.
    """
    values = {section.key: section.values for section in sections}
    targets_of_checks: dict[tuple[str, str], list[str]] = {}
    for check in values["checks"]["not_passed"]:
        targets_of_checks.setdefault((check["status"], check["name"]), []).append(check["shown_target"])
    text = (
        environment(is_markdown=True)
        .get_template("report.md.j2")
        .render(
            **_summary(results, headline, sections),
            claims=values["claims"],
            data=values["data"],
            targets_of_checks=targets_of_checks,
            splits=[*SPLITS, "all"],
        )
    )
    kept, left_out = text.split("\n## "), list[str]()
    while len(text) >= limit and len(kept) > 1:
        left_out.insert(0, kept.pop().partition("\n")[0])
        text = "\n## ".join([*kept, f"Further sections\n\nIn report.html: {', '.join(left_out)}.\n"])
    return text


def _summary(results: Results, headline: Headline, sections: Sequence[Section]) -> dict[str, Any]:
    """Return the values of the first screen."""
    values = {section.key: section.values for section in sections}
    return {
        "info": results.dataset_info,
        "headline": headline,
        "seed": results.params.seed,
        "data_digest": results.configurations["data"].iloc[0],
        "scored_points": list(dict.fromkeys([headline.operating_point, AS_TRAINED])),
        "norm": results.robustness["norm"].iloc[0],
        "eps_grid": eps_of(results.robustness),
        "n_test": len(results.data.indices("test")),
        "validation": values["validation"],
        "leakage_estimate": values["data"]["leakage_estimate"],
        "check_counts": values["checks"]["counts"],
    }


def _interactive(results: Results, headline: Headline, figures: dict[str, RenderedFigure]) -> dict[str, Any]:
    """Return the data of the page's script."""
    embeddings = results.embeddings
    first = point_of(embeddings, headline)
    explorer = None
    if first:
        records = without_independent_surrogates(results.records)
        has_thumbnails, shown = results.params.report.include_images, (first.attack, first.eps)
        explorer = interactive.explorer(embeddings, records, results.data, SPACES, shown, has_thumbnails)
    return {"plots": {name: figure.plot for name, figure in figures.items() if figure.plot}, "explorer": explorer}
