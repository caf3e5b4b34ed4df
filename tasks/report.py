"""Step ``report``: what was asked and found, as one HTML page, as Markdown, and as figures."""

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.tracking import MAX_NOTE_CHARACTERS, Tracker


def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
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

    results = load_results(workspace, params.benchmark)
    headline = headline_of(results.robustness)
    benchmark, sections = benchmark_section(results, headline), sections_of(results, headline)
    gallery = draw(results, headline, [benchmark, *sections])

    workspace.figures.mkdir()
    for name, drawn in gallery.items():
        (workspace.figures / f"{name}.png").write_bytes(drawn.png)
    html = page.html(results, headline, benchmark, sections, gallery, params.flat())
    workspace.report_html.write_text(html, encoding="utf-8")
    markdown = page.markdown(results, headline, MAX_NOTE_CHARACTERS)
    workspace.report_markdown.write_text(markdown, encoding="utf-8")

    tracker.dataset(workspace.prepare, results.dataset_info["name"], "evaluation")
    # one eps, so that the table in which runs are compared stays narrow; all of them are in metrics.json
    tracker.metrics(headline_metrics(results.metrics, headline.eps))
    for path in (workspace.report_html, workspace.metrics, workspace.checks, workspace.benchmark):
        tracker.artifact(path)
    tracker.artifact(workspace.figures, "figures")
    tracker.artifact(workspace.data_docs, "data_docs")
    tracker.note(markdown)
    tracker.link_steps()


if __name__ == "__main__":
    from tasks.runner import main

    main(report)
