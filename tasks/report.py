"""Step ``report``: the results as one HTML page, as Markdown, and as figures."""

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.tracking import MAX_NOTE_CHARACTERS, Tracker


def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write ``report.html`` (self-contained), ``report.md``, ``headline.md`` (first sentences) and ``figures/*.png``.

    A second folder, ``data/summary``, has the metrics and plots that DVC compares. It is small and is kept in git.

    The tracking run of this step represents the whole pipeline: data set, all parameters, headline metrics, Data Docs,
    figures, the report, and links to the runs and models of the other steps.
    """
    from tasks.reporting import page
    from tasks.reporting.headline import headline_metrics, headline_of
    from tasks.reporting.results import load_results
    from tasks.reporting.sections import all_sections
    from tasks.reporting.summary import write_summary
    from tasks.reporting.templating import headline_sentences

    results = load_results(workspace, params)
    headline = headline_of(results)
    sections = all_sections(results, headline)
    figures = page.render_figures(sections)

    workspace.figures.mkdir()
    for name, figure in figures.items():
        (workspace.figures / f"{name}.png").write_bytes(figure.png)
    workspace.report_html.write_text(page.html(results, headline, sections, figures), encoding="utf-8")
    markdown = page.markdown(results, headline, sections, MAX_NOTE_CHARACTERS)
    workspace.report_markdown.write_text(markdown, encoding="utf-8")
    workspace.headline.write_text(f"{headline_sentences(headline)}\n", encoding="utf-8")
    write_summary(workspace, results, headline)

    tracker.dataset(workspace.prepare, results.dataset_info["name"], "evaluation")
    # one eps keeps the table of runs narrow; metrics.json has all of them
    tracker.metrics(headline_metrics(results.metrics, headline.eps))
    tables = (workspace.metrics, workspace.checks, workspace.worst_case, workspace.comparison)
    for path in (workspace.report_html, *tables):
        tracker.artifact(path)
    tracker.artifact(workspace.figures, "figures")
    tracker.images(workspace.figures)
    tracker.artifact(workspace.data_docs, "data_docs")
    tracker.note(markdown)
    tracker.link_steps()


if __name__ == "__main__":
    from tasks.runner import main

    main(report)
