"""How the documentation is built: `python -m sphinx -W -b html docs <folder>`. Needs no network."""

from importlib import metadata

project = "DurableStack"
release = metadata.version("durablestack")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
exclude_patterns = ["peers_reliability.md", "performance_*.md"]  # parts of other pages, which include them

html_theme = "furo"
html_title = f"DurableStack {release}"
