"""Step ``report``: what was asked and found, as one HTML page, as Markdown, and as figures."""

from tasks import paths
from tasks.params import Params
from tasks.tracking import MAX_NOTE_CHARACTERS, Tracker


def report(params: Params, tracker: Tracker) -> None:
    """Write ``report.html`` (self-contained), ``report.md`` (for the run's note) and ``figures/*.png``.

    Its tracking run stands for the whole pipeline: data set, all parameters, headline metrics, Data Docs, figures, the
    report, and the runs and models of the other steps.
    """
    from tasks.reporting import page
    from tasks.reporting.findings import headline_metrics, headline_of
    from tasks.reporting.gallery import draw
    from tasks.reporting.results import load_results
    from tasks.reporting.sections import sections_of
    from tasks.reporting.sections.benchmark import benchmark_section

    results = load_results(params.benchmark)
    headline = headline_of(results.robustness)
    benchmark, sections = benchmark_section(results, headline), sections_of(results, headline)
    gallery = draw(results, headline, [benchmark, *sections])

    paths.FIGURES.mkdir()
    for name, drawn in gallery.items():
        (paths.FIGURES / f"{name}.png").write_bytes(drawn.png)
    html = page.html(results, headline, benchmark, sections, gallery, params.flat())
    paths.REPORT_HTML.write_text(html, encoding="utf-8")
    markdown = page.markdown(results, headline, MAX_NOTE_CHARACTERS)
    paths.REPORT_MARKDOWN.write_text(markdown, encoding="utf-8")

    tracker.dataset(paths.PREPARE, results.dataset_info["name"], "evaluation")
    # one eps, so that the table in which runs are compared stays narrow; all of them are in metrics.json
    tracker.metrics(headline_metrics(results.metrics, headline.eps))
    for path in (paths.REPORT_HTML, paths.METRICS, paths.CHECKS, paths.BENCHMARK):
        tracker.artifact(path)
    tracker.artifact(paths.FIGURES, "figures")
    tracker.artifact(paths.DATA_DOCS, "data_docs")
    tracker.note(markdown)
    tracker.link_steps()


if __name__ == "__main__":
    from tasks.runner import main

    main(report)
