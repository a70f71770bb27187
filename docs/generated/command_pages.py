"""A page for each command, from its help: the same words as `landscape COMMAND --help`."""

import textwrap

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from landscape.cli.app import COMMANDS, app

ROOT = typer.main.get_command(app)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages in the navigation, where its Commands are."""
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    pages = next(part["Commands"] for part in reference if "Commands" in part)
    pages[1:] = [f"commands/{name}.md" for name in ROOT.commands]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the overview and the pages."""
    files.append(File.generated(config, "commands/index.md", content=_overview()))
    for name, command in ROOT.commands.items():
        files.append(File.generated(config, f"commands/{name}.md", content=_page(name, command)))
    return files


def _overview() -> str:
    lines = ["# Commands", "", "`landscape COMMAND --help` prints in the terminal what stands on these pages.", ""]
    for panel, functions in COMMANDS.items():
        lines += [f"**{panel}**", "", "| command | what it does |", "|---|---|"]
        for function in functions:
            name = function.__name__.replace("_", "-")
            lines.append(f"| [`landscape {name}`]({name}.md) | {_description(ROOT.commands[name])[0]} |")
        lines.append("")
    lines += [
        "Exit codes: 0 done; 2 wrong input, and one sentence on standard error says what; 130 interrupted, and the",
        "same command again continues; 1 an error of ours, or a product that `hessian --check` shows to be wrong.",
        "Tables go to standard output and notes to standard error; with `--json` standard output is",
        "[one JSON document](../howto/json.md).",
        "",
    ]
    return "\n".join(lines)


def _description(command: typer.core.TyperCommand) -> list[str]:
    """The help of a command in its paragraphs; examples are indented by four spaces."""
    return [part.strip("\n") for part in textwrap.dedent(command.help or "").split("\n\n")]


def _page(name: str, command: typer.core.TyperCommand) -> str:
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    usage = " ".join([*(p.metavar or p.name.upper() for p in arguments), "[OPTIONS]"])
    lines = [f"# landscape {name}", "", "```text", f"landscape {name} {usage}", "```", ""]
    for paragraph in _description(command):
        is_example = paragraph.startswith("    ")
        text = textwrap.dedent(paragraph)
        lines += ["```sh", text, "```", ""] if is_example else [text, ""]
    panels: dict[str, list] = {}
    for parameter in command.params:
        panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if parameter in arguments else "Options")
        panels.setdefault(panel, []).append(parameter)
    for panel, parameters in panels.items():
        lines += [f"## {panel}", "", "| | | default |", "|---|---|---|"]
        lines += [_row(parameter) for parameter in parameters]
        lines.append("")
    return "\n".join(lines)


def _row(parameter: typer.core.TyperOption) -> str:
    is_option = parameter.opts[0].startswith("-")
    words = ", ".join(f"`{option}`" for option in parameter.opts) if is_option else ""
    metavar = parameter.metavar or ("" if is_option else parameter.name.upper())
    shown = f"{words} `{metavar}`" if is_option and metavar else words or f"`{metavar}`"
    default = parameter.default
    no_default = default is None or default is False or callable(default) or parameter.required or default == ()
    cell = "required" if parameter.required else "" if no_default else f"`{default}`"
    return f"| {shown} | {(parameter.help or '').replace('|', chr(92) + '|')} | {cell} |"
