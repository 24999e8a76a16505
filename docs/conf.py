"""Sphinx configuration: MyST pages, docstrings, the furo theme."""

import roundoff

project = "roundoff"
author = "the roundoff authors"
copyright = "the roundoff authors, Apache-2.0"
release = version = roundoff.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "roundoff"
html_static_path = []
suppress_warnings = ["myst.header"]
