"""How docstrings are read for the site: our section "Example" is the one that griffe knows as "Examples"."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Show what follows "Example:" as code that runs, and not as prose."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
