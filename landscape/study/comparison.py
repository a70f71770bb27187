"""Several checkpoints on the same data sets: what is compared must be comparable."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from landscape.checkpoints import (
    METADATA_FILE,
    Checkpoint,
    CheckpointFiles,
    LoadOptions,
    distinct_names,
    inspect_checkpoint,
    load_files,
    load_tokenizer,
    resolve_device,
)
from landscape.data.questions import Questions, holds_questions, load_questions
from landscape.data.sources import parse_named_sources
from landscape.data.tokens import DataOptions, TokenData, check_vocabulary, load_data
from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.forgetting.own_samples import has_prompts, own_samples
from landscape.results import Provenance

DEFAULT_DATA = "builtin:docs"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Inspected checkpoints and tokenized data sets.

    Attributes:
        files: What the inspection of each checkpoint found.
        names: Names of the checkpoints, all different.
        data: The data sets by name; every checkpoint's tokenizer gives these tokens.
        load_options: How the models are loaded. The device is a real one, never "auto".
        data_options: How questions in the data are read: as the data were, but for the length, which is that of the
            caller, lowered to what all models have positions for.
        data_seed: The seed with which examples were sampled.
    """

    files: tuple[CheckpointFiles, ...]
    names: tuple[str, ...]
    data: Mapping[str, TokenData]
    load_options: LoadOptions
    data_options: DataOptions = DataOptions()
    data_seed: int = 0

    def load(self, index: int) -> Checkpoint:
        """Build the model of checkpoint `index`, under its name in this comparison."""
        options = self.load_options
        checkpoint = load_files(
            self.files[index],
            dtype=options.dtype,
            device=options.device,
            device_map=options.device_map,
            adapter=options.adapter,
            trust_remote_code=options.trust_remote_code,
        )
        return dataclasses.replace(checkpoint, name=self.names[index])

    def describe(self, index: int) -> dict:
        """Return what the provenance of a result of checkpoint `index` says about the checkpoint."""
        file = self.files[index]
        measured_as = {"merge": "merged", "keep": "kept"}[self.load_options.adapter]
        return {"source": file.source, "digest": file.digest} | ({"adapter": measured_as} if file.base else {})

    def settings(self) -> dict:
        """Return what identifies the comparison: two runs that agree on it measure the same."""
        options = self.load_options
        return {
            "checkpoints": [
                {"name": n, "source": f.source, "digest": f.digest} for n, f in zip(self.names, self.files, strict=True)
            ],
            "data": {name: {"source": d.source, "digest": d.digest} for name, d in self.data.items()},
            "dtype": options.dtype,
            "device": options.device if options.device_map is None else f"{options.device_map} over devices",
            "adapter": options.adapter if any(f.base for f in self.files) else None,
        }

    def check_origin(
        self,
        path: Path,
        provenance: Provenance,
        checkpoint: Mapping,
        data_digest: str | Mapping[str, str],
        differing: Sequence[str] = (),
    ) -> None:
        """Raise InputError unless an earlier result is of these checkpoints and these data.

        Args:
            path: The file of the earlier result.
            provenance: The provenance in that file.
            checkpoint: What its provenance must say about the checkpoint or the checkpoints.
            data_digest: The digest of the data that it must be of, or the digests of several data sets by name.
            differing: Names of other settings in which the caller saw that the result differs.
        """
        dtype = self.load_options.dtype
        expected = {
            "checkpoint": checkpoint,
            "data": data_digest,
            "dtype": provenance.dtype if dtype == "auto" else dtype,
        }
        described = provenance.data or {}
        several = isinstance(data_digest, Mapping)
        actual = {
            "checkpoint": provenance.checkpoint,
            "data": {n: d.get("digest") for n, d in described.items()} if several else described.get("digest"),
            "dtype": provenance.dtype,
        }
        differing = [key for key in expected if actual[key] != expected[key]] + list(differing)
        if differing:
            raise InputError(
                f"{path} is not a result of this run ({', '.join(differing)} differ); move it away or choose another "
                f"{as_typed('output')}."
            )

    def file_names(self, prefix: str, of_all: bool) -> dict[tuple[int, str], str]:
        """Return names of result files, by index of the checkpoint and name of the data set.

        Args:
            prefix: The start of each name: what is measured.
            of_all: Whether each result is of all checkpoints together; they are then listed under index 0.
        """
        stems, data_stems = file_stems(self.names), file_stems(list(self.data))
        names = {}
        for index in [0] if of_all else range(len(stems)):
            for data_name, data_stem in zip(self.data, data_stems, strict=True):
                parts = [prefix, *([] if of_all else [stems[index]]), *([data_stem] if len(self.data) > 1 else [])]
                names[index, data_name] = "-".join(parts) + ".json"
        return names


_LONGEST_STEM = 80  # bytes, of the 255 that file systems allow a name: two fit, with what is written beside


def file_stems(names: Sequence[str]) -> list[str]:
    """Turn names into parts of file names: without separators, not too long, and as distinct as they were."""
    stems = [re.sub(r"[^\w.]+", "_", name).strip("_.") or "unnamed" for name in names]
    for index, stem in enumerate(stems):
        if len(stem.encode()) > _LONGEST_STEM:
            start = stem.encode()[: _LONGEST_STEM - 9].decode(errors="ignore")
            stems[index] = f"{start}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
    if len({stem.casefold() for stem in stems}) < len(stems):  # some file systems do not tell a from A
        stems = [f"{stem}-{index + 1}" for index, stem in enumerate(stems)]
    return stems


def open_comparison(
    sources: Sequence[str],
    data: Sequence[str] = (),
    *,
    seed: int = 0,
    data_options: DataOptions = DataOptions(),
    load_options: LoadOptions = LoadOptions(),
) -> Comparison:
    """Inspect checkpoints and tokenize every data set; no model is loaded yet.

    Args:
        sources: Folders or hub ids of checkpoints, as `load_checkpoint` takes them.
        data: A `source` or `name=source` for each data set, as `load_data` takes sources. Default: the examples that
            the first checkpoint says it was evaluated on (of that source others where `data_options` have a limit),
            otherwise `builtin:docs`.
        seed: Seed for sampling examples.
        data_options: How the data are read. The limit on the length is lowered to what all models have positions for.
        load_options: How the models will be loaded.

    Returns:
        The checkpoints and the data sets.

    Raises:
        InputError: A checkpoint or a data set cannot be read, two data sets have the same name, or the tokenizers of
            the checkpoints turn the data into different tokens, so that losses per token would not compare.
    """
    load_options = dataclasses.replace(load_options, device=str(resolve_device(load_options.device)))
    trust = load_options.trust_remote_code
    files = tuple(inspect_checkpoint(source, trust_remote_code=trust) for source in sources)
    evaluated_on = _evaluated_on(files[0]) if not data else None
    default = evaluated_on["source"] if evaluated_on else DEFAULT_DATA
    named = parse_named_sources(data or [default])
    longest = min([data_options.max_length, *(f.max_positions for f in files if f.max_positions)])
    data_options = dataclasses.replace(data_options, max_length=longest)
    if evaluated_on is not None:
        data_options, seed = _as_evaluated(evaluated_on, data_options, seed)
    loaded: dict[str, TokenData] = {}
    for position, file in enumerate(files):
        tokenizer = load_tokenizer(file, trust_remote_code=trust)
        for name, source in named:
            try:
                tokens = load_data(
                    source,
                    tokenizer,
                    max_length=data_options.max_length,
                    limit=data_options.limit,
                    batch_tokens=data_options.batch_tokens,
                    seed=seed,
                )
            except InputError as error:
                if evaluated_on is None:
                    raise
                raise InputError(
                    f"no {as_typed('data')} given, and what {files[0].source} was evaluated on: {error}"
                ) from error
            if file.vocabulary_size is not None:
                check_vocabulary(tokens, file.vocabulary_size, file.source)
            if position == 0:
                loaded[name] = tokens
            elif tokens.digest != loaded[name].digest:
                raise InputError(
                    f"{files[0].source} and {file.source} have different tokenizers: {name} is not the same tokens "
                    "for both, so their losses do not compare."
                )
    if not data:
        _warn_of_default_data(files, evaluated_on, next(iter(loaded.values())))
    # Texts are cut at the length that the checkpoint recorded; questions that are longer would be refused.
    for_questions = dataclasses.replace(data_options, max_length=longest)
    return Comparison(files, tuple(distinct_names(files)), loaded, load_options, for_questions, seed)


def with_questions(
    comparison: Comparison,
    *,
    prompt_format: str = "auto",
    list_choices: bool = False,
) -> Comparison:
    """Return the comparison with those of its data sets that hold questions read as such.

    Args:
        comparison: Its data sets serve for losses; questions have all their choices beside.
        prompt_format: How the questions are asked, see `load_questions`.
        list_choices: Whether the prompts list the choices.
    """
    trust, options = comparison.load_options.trust_remote_code, comparison.data_options
    tokenizer = load_tokenizer(comparison.files[0], trust_remote_code=trust)
    questions = {
        name: load_questions(
            tokens.source,
            tokenizer,
            max_length=options.max_length,
            limit=options.limit,
            batch_tokens=options.batch_tokens,
            seed=comparison.data_seed,
            prompt_format=prompt_format,
            list_choices=list_choices,
        )
        for name, tokens in comparison.data.items()
        if holds_questions(tokens.source)
    }
    return dataclasses.replace(comparison, data={**comparison.data, **questions})


def with_own_samples(comparison: Comparison, *, seed: int = 0) -> Comparison:
    """Return the comparison with another data set for each with prompts, which the first checkpoint completes.

    The data set of NAME is called NAME.own.

    Args:
        comparison: The first of its checkpoints is loaded to sample, and is let go again.
        seed: Seed of the samples.

    Raises:
        InputError: No data set has prompts, one has a name that is needed, or the first checkpoint cannot be sampled
            from.
    """
    prompted = {
        name: tokens
        for name, tokens in comparison.data.items()
        if not isinstance(tokens, Questions) and has_prompts(tokens)
    }
    if not prompted:
        raise InputError(
            f"{as_typed('own_samples')} continues prompts, and no data set has records with a prompt and a "
            "completion, or chats."
        )
    for name in prompted:
        if f"{name}.own" in comparison.data:
            raise InputError(
                f"the data set {name}.own has the name that {as_typed('own_samples')} gives to the base's samples on "
                f"{name}; give it another name."
            )
    base = comparison.load(0)
    own = {f"{name}.own": own_samples(base, tokens, seed=seed) for name, tokens in prompted.items()}
    return dataclasses.replace(comparison, data={**comparison.data, **own})


def _evaluated_on(file: CheckpointFiles) -> dict | None:
    """Return the `source` of the data that a checkpoint says it was evaluated on, and what else it says about them."""
    record = file.metadata.get("evaluated_on")
    if record is None:
        return None
    source = record.get("source") if isinstance(record, dict) else None
    if not isinstance(source, str) or not source:
        raise InputError(f"{file.folder / METADATA_FILE} names no source as evaluated_on; give {as_typed('data')}.")
    beside = str(file.folder / source)  # a relative path may have been meant from anywhere
    return record | {"source": beside if os.path.isfile(beside) and not os.path.exists(source) else source}


def _as_evaluated(evaluated_on: dict, options: DataOptions, seed: int) -> tuple[DataOptions, int]:
    """Return the options and the seed that read the same examples as a checkpoint was evaluated on.

    A limit that the caller gives is another choice of examples, which is left as it is.
    """
    limit, drawn, longest = (evaluated_on.get(name) for name in ("limit", "seed", "max_length"))
    if options.limit is not None or not isinstance(limit, int) or not isinstance(drawn, int) or min(limit, drawn) < 0:
        return options, seed
    longest = min(longest, options.max_length) if isinstance(longest, int) and longest > 0 else options.max_length
    return dataclasses.replace(options, limit=max(limit, 1), max_length=longest), drawn


def _warn_of_default_data(files: Sequence[CheckpointFiles], evaluated_on: dict | None, tokens: TokenData) -> None:
    """Warn that no data were given, naming the data that are measured on instead."""
    words = f"no {as_typed('data')} given; measuring on {tokens.source}"
    if evaluated_on is not None:
        words += f", which {files[0].source} was evaluated on"
        if evaluated_on.get("digest", tokens.digest) != tokens.digest:
            words += ", though not on the same tokens (its content, tokenizer, limit or length differs)"
        others = [_evaluated_on(file) or {} for file in files[1:]]
        key = "digest" if "digest" in evaluated_on else "source"
        if any(other.get(key) != evaluated_on[key] for other in others):
            words += " (not all checkpoints were)"
        if any(record.get("held_out") is False for record in (evaluated_on, *others)):
            words += ", and which are not held out from training: a loss there says little of other texts"
    warnings.warn(f"{words}.", MeasurementWarning, stacklevel=3)
