"""One page of everything that a folder of results holds.

`reading` finds what is there, a file in `chapters/` turns each kind of result into sections and sentences, and `page`
puts them together. How a page looks is in `landscape/plotting/page`.
"""

from landscape.report.page import report_html, write_report

__all__ = ["report_html", "write_report"]
