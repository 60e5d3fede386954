# SPDX-License-Identifier: GPL-2.0
"""How Sphinx makes these pages by themselves (make docs); in a kernel tree its conf.py does."""

project = "Live Update Orchestrator in Rust"
copyright = "its authors, GPL-2.0"
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "sidebar_width": "260px", "show_powered_by": False}
# Text is not translated into typographic quotes and dashes, as in the kernel's documentation.
smartquotes = False
nitpicky = True
