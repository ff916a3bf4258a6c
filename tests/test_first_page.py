"""README.md: pictures become files, links lead from the root, badges come with the repository."""

import re
from base64 import b64encode

import first_page
import pytest
from nbformat import v4
from tidy import ROOT

from bt_adapter.course import workshop_list


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Writes a settings.ini with a repository into an empty folder, where the test goes on."""
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def write(repository):
        changed = re.sub(r"^repository *=.*$", f"repository = {repository}", text, flags=re.M)
        (tmp_path / "settings.ini").write_text(changed, encoding="utf-8")

    return write


def test_badges_come_with_the_repository(named):
    named("")
    assert first_page.badges() == ""
    named("https://github.com/someone/something.git")
    found = first_page.badges()
    assert "github/someone/something/blob/main/nbs/00_ten_minutes.ipynb" in found
    assert "python-3.11_to_3.14-blue" in found and found.count("[![") == 3
    named("https://example.org/something")  # Colab reads from GitHub alone
    assert "colab" not in first_page.badges() and first_page.badges().count("[![") == 2


def test_pictures_become_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nbs").mkdir()
    film = f'<img src="data:image/gif;base64,{b64encode(b"GIF89a").decode()}" width="560" alt="x">'
    shown = [
        {"text/html": film, "text/plain": "left; right"},
        {"image/svg+xml": '<svg width="800" height="9"/>', "text/plain": 'a "plan"'},
        {"text/markdown": "[a](00_a.ipynb) [b](../c.csv)"},
        {"text/plain": "1"},
    ]
    cells = [v4.new_code_cell("1", outputs=[v4.new_output("display_data", d)]) for d in shown]
    first_page.prepare(v4.new_notebook(cells=cells))
    texts = [cell.outputs[0]["data"].get("text/markdown") for cell in cells]
    assert texts == [
        '<img src="nbs/index_files/figure_0.gif" width="560" alt="left; right">',
        '<img src="nbs/index_files/figure_1.svg" width="800" alt="a &quot;plan&quot;">',
        "[a](nbs/00_a.ipynb) [b](c.csv)",
        None,
    ]
    assert (tmp_path / "nbs/index_files/figure_0.gif").read_bytes() == b"GIF89a"


def test_the_first_page_lists_the_whole_workshop():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    wanted = set(re.findall(r"\((workshop/[^)]+)\)", workshop_list()))
    assert wanted and {f"nbs/{place}" for place in wanted} <= set(re.findall(r"\(([^)]+)\)", text))
