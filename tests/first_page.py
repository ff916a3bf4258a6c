"""README.md, rendered by tests/tidy.py from nbs/index.ipynb, its pictures in nbs/index_files/."""

import base64
import posixpath
import re
import shutil
from html import escape, unescape
from pathlib import Path

from first_cells import badge, directives, settings

FIGURES = Path("nbs/index_files")
NOTE = "<!-- Rendered from nbs/index.ipynb by tests/tidy.py: edit the notebook. -->\n\n"
LINK = r"(\]\(|src=\")([^)\s\"]+)"
FILM = r'<img src="data:image/gif;base64,([^"]+)"\s+width="(\d+)"'


def from_root(match):
    """A link of a notebook in nbs/, as seen from the root of the repository."""
    head, target = match.groups()
    if re.match(r"[a-z]+:|[#/]", target):
        return match[0]
    return head + posixpath.normpath(posixpath.join("nbs", target))


def picture_of(output):
    """The picture that an output shows: its ending, data, width on the page; None without one."""
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
    if svg := data.get("image/svg+xml"):
        return "svg", svg.encode(), re.search(r'width="(\d+)', svg)[1]
    if film := re.search(FILM, data.get("text/html", "")):
        return "gif", base64.b64decode(film[1]), film[2]
    if png := data.get("image/png"):
        return "png", base64.b64decode(png), output.metadata.get("image/png", {}).get("width")
    return None


def as_file(output, name):
    """An output whose picture is written to nbs/index_files/, as a line of HTML that shows it."""
    ending, data, width = picture_of(output)
    FIGURES.mkdir(exist_ok=True)
    file = FIGURES / f"{name}.{ending}"
    file.write_bytes(data)
    words = "".join(output["data"].get("text/plain", ""))
    if ending == "svg":  # without the hint that a drawing gives those who do not see it
        told = re.findall(r"<(?:title|desc)>(.*?)</", data.decode())[:2]
        words = unescape(": ".join(told)) or words
    wide = f' width="{width}"' if width else ""
    output["data"] = {"text/markdown": f'<img src="{file.as_posix()}"{wide} alt="{escape(words)}">'}
    output["metadata"] = {}


def badges():
    """Colab, Python and licence, as soon as settings.ini names a repository; nothing before."""
    named = settings()
    repository = named.get("repository", "").strip().rstrip("/").removesuffix(".git")
    if not repository:
        return ""
    shields = {
        "Python": f"python-{named['min_python']}_to_{named['max_python']}-blue",
        "Licence": f"licence-{named['license'].replace('-', '--')}-blue",
    }
    targets = {"Python": f"{repository}#try-it", "Licence": "LICENSE"}
    found = [badge(repository, "00_ten_minutes.ipynb")]
    found += [
        f"[![{name}](https://img.shields.io/badge/{path})]({targets[name]})"
        for name, path in shields.items()
    ]
    return " ".join(filter(None, found))


def prepare(index):
    """The notebook as the page shows it: hidden cells gone, links and pictures where they are."""
    index.metadata["language_info"] = {"name": "python"}  # which nbdev's cleaning took away
    index.cells = [cell for cell in index.cells if "hide" not in directives(cell)]
    for number, cell in enumerate(index.cells):
        if directives(cell).get("echo") == "false":
            cell.metadata["transient"] = {"remove_source": True}  # nbconvert's own mark
        cell.source = re.sub(r"^#\s*\|.*\n?", "", cell.source, flags=re.M)
        if cell.cell_type == "markdown":
            cell.source = re.sub(LINK, from_root, cell.source)
        for output in cell.get("outputs", []):
            if text := output.get("data", {}).get("text/markdown"):
                output["data"]["text/markdown"] = re.sub(LINK, from_root, "".join(text))
            elif picture_of(output):
                as_file(output, f"figure_{number}")


def render_readme():
    """README.md from nbs/index.ipynb."""
    import nbformat
    from nbconvert import MarkdownExporter

    index = nbformat.read("nbs/index.ipynb", as_version=4)
    shutil.rmtree(FIGURES, ignore_errors=True)
    prepare(index)
    text, _ = MarkdownExporter().from_notebook_node(index)
    text = re.sub(r"\n{3,}", "\n\n", text.strip())
    if found := badges():
        title, _, rest = text.partition("\n\n")
        text = f"{title}\n\n{found}\n\n{rest}"
    Path("README.md").write_text(f"{NOTE}{text}\n", encoding="utf-8")
