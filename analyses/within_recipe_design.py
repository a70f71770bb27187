"""The design of the study within recipes: its bases, the ways to fine-tune, and which checkpoints are measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

OPTIMIZERS = ("adamw", "sam", "sam-wide")


class Base(NamedTuple):
    """One pre-training run."""

    pair: str
    recipe_number: int  # among all recipes of the study
    optimizer: str
    lr: float
    seed: int

    @property
    def recipe(self) -> str:
        return f"{self.pair}/{self.optimizer}-{self.lr:g}"

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.seed}"


class Cell(NamedTuple):
    """One way to fine-tune: runs that agree in it are tuned alike."""

    optimizer: str
    lr: float
    steps: int

    @property
    def name(self) -> str:
        return f"{self.optimizer}-{self.lr:g}-{self.steps}"


def bases_of(settings: dict) -> Iterator[Base]:
    """Every base, first all recipes with the first seed."""
    of = settings["bases"]
    recipes = list(itertools.product(settings["pairs"], of["optimizers"], of["lrs"]))
    for place in range(len(next(iter(settings["pairs"].values()))["base_seeds"])):
        for number, (pair, optimizer, lr) in enumerate(recipes):
            yield Base(pair, number, optimizer, lr, settings["pairs"][pair]["base_seeds"][place])


def all_cells(settings: dict, optimizers: tuple[str, ...] = OPTIMIZERS) -> list[Cell]:
    of = settings["tuning"]
    return [Cell(*levels) for levels in itertools.product(optimizers, of["lrs"], of["steps"])]


def cells_of(recipe: int, settings: dict) -> list[Cell]:
    """The cells whose checkpoints are measured in a recipe: two thirds of the rates and lengths, optimizers rotated."""
    of = settings["tuning"]
    return [
        Cell(OPTIMIZERS[(i + 2 * j + recipe // 3) % 3], lr, steps)
        for (i, lr), (j, steps) in itertools.product(enumerate(of["lrs"]), enumerate(of["steps"]))
        if (i + j + recipe) % 3
    ]


def measured_in(settings: dict, half: int) -> Iterator[tuple[Base, Cell, int]]:
    """The checkpoints measured first (0) or later (1): of the two lengths that a recipe has at a rate, one each.

    Either half has every rate, length and optimizer, and all checkpoints of its cells: the first can be read alone.
    """
    for number, lr in enumerate(settings["tuning"]["lrs"]):
        for seed in settings["tuning"]["seeds"]:  # not within a base: two workers would measure the same base at once
            for base in bases_of(settings):
                at_rate = [cell for cell in cells_of(base.recipe_number, settings) if cell.lr == lr]
                for cell in at_rate[(number + base.recipe_number + half) % 2 :: 2]:
                    yield base, cell, seed
