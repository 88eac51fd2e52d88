"""Square attack (Andriushchenko et al., arXiv 1912.00049): scores only, so masked gradients cannot fool it."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from crmt.attacks.balls import Ball, Group, chosen, columns, device_of
from crmt.attacks.base import Attack, Call
from crmt.attacks.search import AttackResult, Search, check_counts
from crmt.modality import Inputs
from crmt.model import MultiModalModel, evaluating

FIRST_SHARE = 0.3
"""Share of a plane that the first squares cover."""
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of all queries after which that share halves (paper, section 5)."""
TILES = 5
"""Tiles along each side of a plane, in the first δ."""


def square(
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    ball: Ball,
    *,
    queries: int = 500,
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Random search with squares on the margin, in any ball, on inputs of any shape.

    Every query draws one modality of every group. ℓ∞: a square of it goes to ±ε, one sign for each channel. ℓ2: a
    square takes what budget the ball has left, and what another square, in any modality of the group, gives up: so a
    joint ball's budget moves between modalities. All axes but the last two are channels, frames among them.

    Args:
        model: attacked in evaluation mode, and left as it was.
        inputs: x, `(B, *shape)` of every modality, in its space and inside its box.
        labels: y, `(B,)`, int64.
        ball: which modalities may move, and how far.
        queries: forward passes after the first δ.
        start: adversarial inputs to start from, where they are better than x and than the tiles of random sign that
            the search starts from otherwise. From x itself it would never spread over the input.
        generator: for everything that is drawn; squares lie elsewhere in every sample.

    Raises:
        BadInputError: as `pgd`.
    """
    check_counts(queries=queries)
    draw = _Draw(generator)
    with evaluating(model):
        search = Search(model, inputs, labels, ball)
        if not search.begin():
            return search.result()
        best, margin = _first(search, start, draw)
        for query in range(queries):
            kept = search.narrowed()
            if kept is not None:
                if not len(kept):
                    break
                best, margin = {m: d[kept] for m, d in best.items()}, margin[kept]
            share = FIRST_SHARE / 2 ** sum(query >= h * queries for h in HALVINGS)
            tried = search.project(_changed(search, best, share, draw))
            reached = search.evaluate(tried)
            better = reached < margin
            best = chosen(better, tried, best)
            margin = torch.where(better, reached, margin)
    return search.result()


class _Draw:
    """Random numbers drawn on the generator's device and moved to the inputs'."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator
        self.device = device_of(generator)

    def integers(self, high: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.device).to(like.device)

    def signs(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return (2 * self.integers(2, shape, like) - 1).to(like.dtype)

    def choice(self, names: tuple[str, ...]) -> str:
        return names[int(torch.randint(len(names), (), generator=self.generator, device=self.device))]


def _planes(x: Tensor) -> Tensor:
    """`(B, channels, H, W)`; one axis is a row, two are channels of rows."""
    if x.ndim == 2:
        return x[:, None, None, :]
    if x.ndim == 3:
        return x[:, :, None, :]
    return x.reshape(len(x), -1, *x.shape[-2:])


def _tiles(search: Search, draw: _Draw) -> Inputs:
    """The first δ, of full length in every group: tiles of random sign."""
    signs: Inputs = {}
    for m, x in search.attacked.items():
        b, c, h, w = (plane := _planes(x)).shape
        drawn = draw.signs((b, c, min(TILES, h), min(TILES, w)), plane)
        rows = torch.arange(h, device=x.device) * drawn.shape[2] // h
        cells = torch.arange(w, device=x.device) * drawn.shape[3] // w
        signs[m] = drawn[:, :, rows][..., cells].reshape(x.shape)
    epsilons = search.ball.epsilons(signs)
    return {m: epsilons[m] * d for m, d in search.ball.steepest(signs).items()}


def _first(search: Search, start: Mapping[str, Tensor] | None, draw: _Draw) -> tuple[Inputs, Tensor]:
    """The first δ and the margins there, `(R,)`."""
    clean = search.margin[search.rows]
    tiles = search.project(_tiles(search, draw))
    margin = search.evaluate(tiles)
    if start is None:
        return tiles, margin
    given = search.start(start)
    reached = search.evaluate(given)
    better = reached < torch.minimum(margin, clean)
    return chosen(better, given, tiles), torch.where(better, reached, margin)


def _changed(search: Search, deltas: Inputs, share: float, draw: _Draw) -> Inputs:
    changed = dict(deltas)
    for group in search.ball.groups:
        if search.ball.norm == "linf":
            m = draw.choice(group.modalities)
            changed[m] = _flat_square(search, m, deltas[m], share, draw)
        else:
            changed |= _moved_mass(search, group, deltas, share, draw)
    return changed


def _window(plane: Tensor, share: float, draw: _Draw) -> tuple[Tensor, Tensor, Tensor]:
    """A square of that share of the plane, elsewhere in every sample: the mask `(B, 1, H, W)`, and where in the
    square, from 0 to 1, each row `(B, 1, H, 1)` and column `(B, 1, 1, W)` lies."""
    b, _, h, w = plane.shape
    side = max(1, round(sqrt(share * h * w)))
    height, width = min(side, h), min(side, w)
    rows = torch.arange(h, device=plane.device)[None] - draw.integers(h - height + 1, (b, 1), plane)
    cells = torch.arange(w, device=plane.device)[None] - draw.integers(w - width + 1, (b, 1), plane)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((cells >= 0) & (cells < width))[:, None, None, :]
    where_rows = ((rows + 0.5) / height).to(plane.dtype)[:, None, :, None]
    where_cells = ((cells + 0.5) / width).to(plane.dtype)[:, None, None, :]
    return inside, where_rows, where_cells


def _flat_square(search: Search, m: str, delta: Tensor, share: float, draw: _Draw) -> Tensor:
    plane = _planes(delta)
    inside, _, _ = _window(plane, share, draw)
    epsilon = search.ball.epsilons({**search.attacked})[m].reshape(-1, 1, 1, 1)
    signs = draw.signs((*plane.shape[:2], 1, 1), plane)
    return torch.where(inside, epsilon * signs, plane).reshape(delta.shape)


def _moved_mass(search: Search, group: Group, deltas: Inputs, share: float, draw: _Draw) -> Inputs:
    """ℓ2: empty two squares; put all that the budget then has left into the first, with a new bump in each channel."""
    to, source = draw.choice(group.modalities), draw.choice(group.modalities)
    planes = {m: _planes(deltas[m]) for m in group.modalities}
    given, _, _ = _window(planes[source], share, draw)
    inside, rows, cells = _window(planes[to], share, draw)
    taken = planes[to] * inside
    rest = dict(planes)
    rest[source] = rest[source].masked_fill(given, 0)
    rest[to] = rest[to].masked_fill(inside, 0)
    spent = torch.stack([p.flatten(1).square().sum(1) for p in rest.values()]).sum(0)
    epsilon = search.ball.epsilons(search.attacked)[to].flatten()
    budget = (epsilon.square() - spent).clamp_min(0).sqrt()
    # a bump that falls off towards the square's edges stands in for the paper's two-peaked one
    bump = ((rows * (1 - rows)) * (cells * (1 - cells))).clamp_min(0) * inside
    bump = bump * draw.signs((*planes[to].shape[:2], 1, 1), bump)
    wanted = _unit(bump) + _unit(taken)
    length = wanted.flatten(1).norm(dim=1)
    rest[to] = rest[to] + columns(budget / length.clamp_min(1e-12), wanted) * wanted
    return {m: p.reshape(deltas[m].shape) for m, p in rest.items()}


def _unit(plane: Tensor) -> Tensor:
    """Every channel of length 1, or 0."""
    length = plane.flatten(2).norm(dim=2)[..., None, None]
    return plane / torch.where(length > 0, length, torch.ones_like(length))


class Square(Attack):
    """Square as a part that is found by name: the arguments of `square` from a `Call`."""

    title = "Square"
    settings = ("queries",)
    random = True
    place_in_auto = 60

    def run(self, call: Call) -> AttackResult:
        return square(*call.target, queries=call.settings.queries, start=call.start, generator=call.generator)


ATTACK = Square
