"""A page for each sharpness metric, from what the registry says of it: the same words as `landscape metrics NAME`."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from landscape.cli.metrics import describe_metrics

TRUST = Path(__file__).with_name("when_to_trust.md")  # a section for each metric, with what the registry does not hold
METRICS = {name: described for name, described in describe_metrics().items() if described["formula"]}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages in the navigation, where its Metrics are."""
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    pages = next(part["Metrics"] for part in reference if "Metrics" in part)
    pages[1:] = [f"metrics/{name}.md" for name in METRICS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the overview and the pages."""
    files.append(File.generated(config, "metrics/index.md", content=_overview()))
    for name in METRICS:
        files.append(File.generated(config, f"metrics/{name}.md", content=_page(name)))
    return files


def _overview() -> str:
    rows = [
        f"| [`{name}`]({name}.md) | {d['description']} | `{d['formula']}` | {_cell(d['cost'])} |"
        for name, d in METRICS.items()
    ]
    return "\n".join(
        [
            "# Sharpness metrics",
            "",
            "Each metric is one definition of how fast the loss rises around the weights, and no two of them have to",
            "agree. `landscape metrics` prints this list, `landscape sharpness --metric NAME` and",
            '`compute_sharpness(metric="NAME")` measure one of them. In formulas, L is the loss (nats per supervised',
            "token), w the weights, g and H its gradient and Hessian at w, and F the Gauss-Newton matrix, which for",
            "cross-entropy is the Fisher matrix. What a number does not see is as much part of it as what it measures:",
            "[Invariances](../concepts/invariances.md) has the table, and [Certificates](../concepts/certificates.md)",
            "says how far a number can be trusted.",
            "",
            "| metric | what it is | formula | cost |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _page(name: str) -> str:
    described = METRICS[name]
    options = ", ".join(f"`{option}={default}`" for option, default in described["options"].items()) or "none"
    base = ["", "It needs the base checkpoint: `--base`, or `base=` in Python."] if described["needs_base"] else []
    example = f"landscape sharpness runs/adamw runs/sam --metric {name}" + " --base base" * described["needs_base"]
    call = f'compute_sharpness(model, data, metric="{name}"' + ", base=base" * described["needs_base"] + ")"
    return "\n".join(
        [
            f"# {name}",
            "",
            described["description"],
            *base,
            "",
            f"| formula | `{described['formula']}` |",
            "|---|---|",
            f"| options | {_cell(options)} |",
            f"| cost | {_cell(described['cost'])} |",
            f"| unchanged by | {_cell(described['invariance'])} |",
            f"| source | {_cell(described['source'])} |",
            "",
            "```sh",
            example,
            "```",
            "",
            f"In Python: `{call}`, which returns a [`Sharpness`](../python/sharpness.md).",
            "",
            "## In full",
            "",
            f"::: landscape.sharpness.metrics.{_module(name)}.{_function(name)}",
            "    options: {show_root_heading: false, show_root_toc_entry: false, show_signature: false}",
            "",
            _trust(name),
        ]
    )


def _module(name: str) -> str:
    from landscape import SHARPNESS_METRICS

    return SHARPNESS_METRICS[name].measure.__module__.rpartition(".")[2]


def _function(name: str) -> str:
    from landscape import SHARPNESS_METRICS

    return SHARPNESS_METRICS[name].measure.__name__


def _trust(name: str) -> str:
    sections = TRUST.read_text(encoding="utf-8").split("\n## ")
    texts = dict(section.split("\n", 1) for section in sections[1:])
    return f"## When to trust it\n\n{texts[name].strip()}\n" if name in texts else ""


def _cell(text: str) -> str:
    """Text in a cell of a table, whose columns are parted by bars; bars between backquotes part nothing."""
    return text.replace("|", "\\|")
