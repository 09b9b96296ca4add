"""Every block of Python in the README and in the docs runs; figures are those of the benches."""

import contextlib
import importlib.util
import io
import json
import pathlib
import re
import statistics

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [code for kind, code in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_python_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for i, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page.name}, block {i + 1}", "exec"), names)


def test_the_readme_shows_the_table_that_is_printed(capsys):
    names = {}
    for code in blocks(ROOT / "README.md", "python"):
        exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out == blocks(ROOT / "README.md", "text")[0]


def test_the_loop_of_the_readme_has_ten_lines_and_learns():
    code = blocks(ROOT / "README.md", "python")[0]
    loop = code[code.index("tape = ") :].strip().splitlines()
    assert len(loop) <= 10

    def last_loss():
        names = {}
        exec(compile(code, "README.md", "exec"), names)
        return names["loss"].item()

    # From ln 8 = 2.08. The weights are drawn anew each time: of some hundred runs one came to no more than 1.0.
    assert any(last_loss() < 1.0 for _ in range(3))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_two_commands_of_the_readme_do_all_the_set_up():
    commands = blocks(ROOT / "README.md", "sh")
    assert len(commands) == 2
    assert all(
        command.startswith("python3 -m venv .venv && ") and command.count("\n") == 1 for command in commands
    )


# -- what programs print -----------------------------------------------------------------------------


def test_what_the_page_of_programs_shows_is_what_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, printed, shown = {"__name__": "page"}, "", 0
    for kind, code in FENCE.findall((ROOT / "docs" / "programs.md").read_text(encoding="utf-8")):
        if kind == "text":
            assert code == printed
            printed, shown = "", shown + 1
        elif kind == "python":
            assert not printed, f"programs.md does not show:\n{printed}"
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(code, "programs.md", "exec"), names)
            printed = output.getvalue()
    assert not printed
    assert shown == 5


# -- figures -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables():
    """docs/tables.py as a module."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_tables_of_a_page_are_those_of_the_results(tables, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run python docs/tables.py"


def test_every_table_stands_in_a_page_and_every_marker_has_a_table(tables):
    marked = [
        m for page in tables.PAGES for m in re.findall(r"<!-- table: (\w+) -->", page.read_text("utf-8"))
    ]
    assert {*marked} == tables.TABLES.keys()


def test_figures_of_performance_stand_in_tables(tables):
    outside = tables.BETWEEN.sub("", (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    # The length of a run is a setting.
    assert (
        re.findall(r"\d[\d.,]* ?(?:µs|ms\b|[KMG]B\b|%|×|times\b)", outside.replace("300 times `tanh", ""))
        == []
    )


def test_a_table_says_what_its_figures_were_measured_on(tables):
    made = [tables.made(name) for name in tables.TABLES]
    for text in made:
        assert "Not measured yet" in text or ("Xeon" in text and "thread" in text and "Python 3" in text)
    assert sum("Not measured yet" not in text for text in made) >= 10


def test_a_bench_that_has_not_run_has_no_table(tables, tmp_path):
    for name, (sources, _) in tables.TABLES.items():
        source = sources if isinstance(sources, str) else sources[0]
        assert (
            tables.made(name, tmp_path).strip()
            == f"Not measured yet: there is no `bench/results/{source}.json`."
        )


def test_the_bits_per_character_of_the_readme_are_those_of_the_results():
    found = json.loads((ROOT / "bench" / "results" / "main_job.json").read_text())["results"]
    bits = {
        setting: [report["held_out_bits_per_char"] for report in reports]
        for setting, reports in found.items()
    }
    medians = {setting: f"{statistics.median(values):.2f}" for setting, values in bits.items()}
    recorded = bits["--weights recorded"]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"**{medians['--weights recorded']} bits per character**" in text
    assert f"{min(recorded):.2f} to {max(recorded):.2f}" in text
    assert f"`--weights current` reaches {medians['--weights current']}" in text
    assert f"`--cell gru` {medians['--cell gru']}, `--cell rnn` {medians['--cell rnn']}" in text
