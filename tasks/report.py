"""Step ``report``: what was asked and found, as one HTML page, as Markdown, and as figures."""

from tasks import paths
from tasks.params import Params
from tasks.tracking import MAX_NOTE_CHARACTERS, Tracker


def report(params: Params, tracker: Tracker) -> None:
    """Write ``report.html`` (self-contained), ``report.md`` (for the run's note) and ``figures/*.png``."""
    from tasks.reporting import page
    from tasks.reporting.findings import headline_metrics, headline_of
    from tasks.reporting.gallery import draw
    from tasks.reporting.results import load_results

    results = load_results()
    headline = headline_of(results.robustness)
    gallery = draw(results, headline)

    paths.FIGURES.mkdir()
    for name, drawn in gallery.items():
        (paths.FIGURES / f"{name}.png").write_bytes(drawn.png)
    paths.REPORT_HTML.write_text(page.html(results, headline, gallery, params.flat()), encoding="utf-8")
    markdown = page.markdown(results, headline, MAX_NOTE_CHARACTERS)
    paths.REPORT_MARKDOWN.write_text(markdown, encoding="utf-8")

    tracker.metrics(headline_metrics(results.metrics, headline.eps))
    tracker.artifact(paths.REPORT_HTML)
    tracker.artifact(paths.FIGURES, "figures")
    tracker.note(markdown)
    tracker.link_steps()


if __name__ == "__main__":
    from tasks.runner import main

    main(report)
