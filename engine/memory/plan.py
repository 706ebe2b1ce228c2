"""Where weights rest and how a clip is decoded so that a run fits: a pure function from sizes and budgets to a plan."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from ..backends.choose import Backends
from ..constants import GIB
from ..errors import NothingFitsError
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.memory import Memory
from ..sentences.report import Report
from ..settings import HostPolicy
from .clip import Clip
from .explain import explain_frames, explain_run
from .needs import (
    LATER_MARGIN,
    Budget,
    Need,
    Sizes,
    copied_frames_bytes,
    decoding_need,
    encoding_need,
    loading_need,
    resting_need,
    sampling_need,
    uploaded_frames_bytes,
    video_encoding_need,
)
from .placement import Placement
from .tiles import Tile

# A whole decode or encode, and tiles from the fastest to the one that takes least.
_TILES = (None, Tile(), Tile(size=48), Tile(size=32))
# So many of the choices cost little more than the whole: less than to load the transformer again.
_NUM_GOOD_TILES = 2
# What the stages of a VAE take, and how much of it is page-locked.
_OF_STAGE = {
    "decode": (decoding_need, copied_frames_bytes),
    "encode": (video_encoding_need, uploaded_frames_bytes),
}
# From here on a block computes for longer than it is transferred, so that streaming costs next to nothing.
_STREAMING_IS_FREE_TOKENS = 16_000
# A retry takes at most this share of the VRAM of the plan that ran out of memory, or the least there is.
_RETRY_SHARE = 0.85


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was chosen, and what is loaded already."""

    mode: str = "auto"
    """auto | none | block | phase | disk."""
    tiling: str = "auto"
    """auto | on | off."""
    tile: Tile | None = None
    """Taken whatever fits; a smaller one only once it ran out of memory."""
    pinned_limit_bytes: int | None = None
    policy: HostPolicy = field(default_factory=HostPolicy)
    current: Placement | None = None
    """Kept where it fits and is not clearly worse than the best."""
    failed: Need | None = None
    """What sampling needed when it ran out of memory: for a retry, which is to need clearly less VRAM."""


@dataclass(frozen=True, kw_only=True)
class VaePlan:
    """How a clip is going to be decoded or encoded."""

    stage: str
    """decode | encode."""
    tile: Tile | None
    """Largest tile; None is the whole picture at once."""
    weights_stay: bool
    """Whether what other handles hold may stay meanwhile."""
    need: Need
    pins_frames: bool = True
    """Whether frames come from the GPU, or go to it, through page-locked RAM."""

    def __str__(self) -> str:
        stage = {"decode": Report.DECODE, "encode": Report.ENCODE}[self.stage]()
        return Memory.TILED(stage=stage, size=self.tile.size) if self.tile else Memory.WHOLE(stage=stage)


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """What one of several GPUs that compute a clip together has of it."""

    device: str
    """What it is called in messages."""
    placement: Placement
    loaded: int
    """Bytes of VRAM that the weights take."""
    sampled: int
    """Bytes of VRAM at the peak of sampling."""
    budget: Budget

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON data for the run report."""
        return {
            "device": self.device,
            "mode": self.placement.mode,
            "resident_blocks": self.placement.resident_blocks,
            "vram_bytes": self.sampled,
            "free_vram_bytes": self.budget.vram,
        }


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a run is going to fit."""

    placement: Placement
    """Of several GPUs: of the one that has room for least; what it streams is in RAM once, for all of them."""
    backends: Backends
    num_blocks: int
    """Of an expert."""
    decode: VaePlan
    needs: dict[str, Need]
    """By stage: encode, load_transformer, sample, decode."""
    budget: Budget
    num_experts: int = 1
    ranks: tuple[RankPlan, ...] = ()
    """Of several GPUs: each one's, this process's own first."""

    @property
    def vram(self) -> int:
        """Bytes that torch will have reserved at the peak of the run."""
        return max(need.vram for need in self.needs.values())

    @property
    def ram(self) -> int:
        return max(need.ram for need in self.needs.values())

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Of each GPU."""
        return tuple(rank.placement for rank in self.ranks) or (self.placement,)

    @property
    def claimed(self) -> tuple[int, int]:
        """Bytes of VRAM of this process's own card that the weights take, and sampling in all."""
        if self.ranks:
            return self.ranks[0].loaded, self.ranks[0].sampled
        return self.needs["load_transformer"].vram, self.needs["sample"].vram

    def has_room_beside(self, held: Need) -> bool:
        """Say whether sampling fits beside what else the process holds, on its own card and in RAM."""
        need = Need(vram=self.claimed[1], ram=self.needs["sample"].ram)
        return (need + held).fits(self.ranks[0].budget if self.ranks else self.budget)

    def __str__(self) -> str:
        return Memory.PLAN(summary=self.summary)

    @property
    def summary(self) -> str:
        """What is chosen, what it takes and what there is, in words."""
        ram = Memory.RAM_OF_FREE(ram=self.ram / GIB, free=self.budget.ram / GIB)
        return Memory.SUMMARY(cards=self._describe_cards(), ram=ram, decode=self.decode)

    def _describe_cards(self) -> str:
        """Return where weights rest and the VRAM that this takes; cards with the same placement together."""
        if not self.ranks:
            return self._describe_card(self.placement, self.vram, self.budget.vram)
        texts = []
        for placement in dict.fromkeys(self.placements):
            ranks = [rank for rank in self.ranks if rank.placement == placement]
            least = min((rank.budget.vram for rank in ranks if rank.budget.vram is not None), default=None)
            vram = max(rank.sampled for rank in ranks)
            if placement == self.placement:
                vram = max(vram, self.vram)
            names = joined([rank.device for rank in ranks], Between.AND)
            texts.append(Memory.OF_CARDS(names=names, plan=self._describe_card(placement, vram, least)))
        return joined(texts, Between.SEMICOLON)

    def _describe_card(self, placement: Placement, vram: int, free: int | None) -> str:
        where = placement.describe(self.num_blocks, self.num_experts)
        return where if free is None else Memory.WITH_VRAM(where=where, vram=vram / GIB, free=free / GIB)

    def as_data(self) -> dict[str, Any]:
        """Return the plan as JSON data for the run report."""
        return {
            "line": str(self),
            "summary": self.summary,
            "mode": self.placement.mode,
            "resident_blocks": self.num_blocks if self.placement.mode == "none" else self.placement.resident_blocks,
            "num_blocks": self.num_blocks,
            "num_experts": self.num_experts,
            "tile": self.decode.tile.size if self.decode.tile else None,
            "free_vram_bytes": self.budget.vram,
            "free_ram_bytes": self.budget.ram,
            "ranks": [rank.as_data() for rank in self.ranks],
            "needs": {stage: {"vram_bytes": need.vram, "ram_bytes": need.ram} for stage, need in self.needs.items()},
        }


def plan_run(sizes: Sizes, budget: Budget, wish: Wish) -> MemoryPlan:
    """Choose where weights rest and how the clip is decoded.

    The fastest mode that fits: all weights resident; else streamed from RAM with as many resident blocks as fit,
    then by phases; from disk where RAM is short. A named mode keeps the fewest blocks resident for which there is RAM.

    Faster kernels that take more memory are taken where the weights rest in the same mode with them.

    Raises:
        NothingFitsError: no mode that may be taken has room for this clip, or RAM for its frames; says what each would
            need.
    """
    if sizes.leaner is None:
        return _plan_run(sizes, budget, wish)
    plan = _plan_run(replace(sizes, backends=sizes.leaner), budget, wish)
    with contextlib.suppress(NothingFitsError):
        fast = _plan_run(sizes, budget, wish)
        if (fast.placement.mode, fast.decode.tile) == (plan.placement.mode, plan.decode.tile):
            return fast
    return plan


def _plan_run(sizes: Sizes, budget: Budget, wish: Wish) -> MemoryPlan:
    def best_for(clip: Clip) -> Placement | None:
        groups = _fitting(replace(sizes, clip=clip), budget, replace(wish, mode="auto"))
        return groups[0][0] if groups else None

    groups = _fitting(sizes, budget, wish)
    placement = _choose(sizes, budget, groups, _tiles(wish)) if groups else None
    if wish.current is not None and _is_worth_keeping(wish.current, placement, sizes, budget, wish):
        placement = wish.current
    if placement is None:
        raise NothingFitsError(explain_run(sizes, budget, wish.mode, best_for))
    on_gpu = budget.vram is not None
    held = resting_need(sizes.weights, placement, on_gpu=on_gpu, ranks=sizes.ranks)
    decode = plan_vae("decode", sizes.clip, sizes.vae_dim, budget, wish, held)
    needs = {
        "encode": encoding_need(sizes.text_encoder_bytes, "cpu"),
        "load_transformer": loading_need(sizes, placement, on_gpu=on_gpu),
        "sample": sampling_need(sizes, placement, on_gpu=on_gpu),
        "decode": decode.need,
    }
    return MemoryPlan(
        placement=placement,
        backends=sizes.backends,
        num_blocks=sizes.weights.num_blocks,
        decode=decode,
        needs=needs,
        budget=budget,
        num_experts=sizes.weights.num_experts,
    )


def plan_ranks(
    sizes: Sizes,
    plan: MemoryPlan,
    budgets: Mapping[str, Budget],
    wish: Wish,
    current: Sequence[Placement] = (),
) -> MemoryPlan:
    """Return a plan with what each of several GPUs has: where one has room for more blocks, these rest on it.

    What the others stream is in RAM for all of them, so that the mode is the same.

    Args:
        sizes, wish: as for plan_run.
        plan: that of the card which has least.
        budgets: of each card, by name, this process's own first.
        current: of what is loaded as `plan` says, each card's; kept where it fits.
    """
    sizes = replace(sizes, backends=plan.backends)
    ranks = []
    for index, (device, budget) in enumerate(budgets.items()):
        loaded = current[index] if index < len(current) else None
        placement = _placement_of_rank(sizes, plan, budget, wish, loaded)
        needs = [make(sizes, placement, on_gpu=budget.vram is not None) for make in (loading_need, sampling_need)]
        vram = [need.vram for need in needs]
        ranks.append(RankPlan(device=device, placement=placement, loaded=vram[0], sampled=vram[1], budget=budget))
    return replace(plan, ranks=tuple(ranks))


def _placement_of_rank(
    sizes: Sizes, plan: MemoryPlan, budget: Budget, wish: Wish, current: Placement | None
) -> Placement:
    """Return where a card's weights rest: as in the plan, or with more blocks on the card."""
    on_gpu, least = budget.vram is not None, plan.placement

    def has_room(placement: Placement, margin: float) -> bool:
        held = resting_need(sizes.weights, placement, on_gpu=on_gpu, ranks=sizes.ranks)
        decode = decoding_need(sizes.clip, sizes.vae_dim, plan.decode.tile, on_gpu=on_gpu, beside=held)
        may_decode = not plan.decode.weights_stay or decode.fits_vram(budget, margin)
        return may_decode and sampling_need(sizes, placement, on_gpu=on_gpu).fits_vram(budget, margin)

    is_chosen = wish.mode == "auto" and wish.policy.prefer == "speed" and wish.failed is None and least.mode != "none"
    if not is_chosen or not on_gpu:
        return least
    counts = range(sizes.weights.num_blocks, least.resident_blocks, -1)
    more = [replace(least, resident_blocks=count) for count in counts]
    if current in (least, *more) and (current == least or has_room(current, LATER_MARGIN)):
        return current
    return next((each for each in more if has_room(each, 1.0)), least)


def plan_vae(
    stage: str,
    clip: Clip,
    vae_dim: int,
    budget: Budget,
    wish: Wish,
    held: Need,
    *,
    margin: float = 1.0,
    below: VaePlan | None = None,
) -> VaePlan:
    """Choose how to decode or encode, and whether what is `held` may stay beside it; where no tile fits VRAM, the
    least is taken.

    Args:
        stage: decode | encode.
        clip, vae_dim: what is to be decoded or encoded, and the base width of its VAE; 0 is the tiny autoencoder.
        budget, wish: what there is, and what was chosen.
        held: by weights that are loaded and not needed for it.
        margin: share of the usual margins.
        below: the plan that ran out of memory; the next smaller tile is taken then.

    Raises:
        NothingFitsError: there is not the RAM for the frames.
    """
    tiles, on_gpu = _tiles(wish), budget.vram is not None
    need_of, pinned_of = _OF_STAGE[stage]

    def frames_ram(clip: Clip) -> int:
        return min(need_of(clip, vae_dim, tile, on_gpu=on_gpu).ram for tile in _tiles(wish))

    if frames_ram(clip) > budget.ram:
        raise NothingFitsError(explain_frames(stage, clip, frames_ram, budget))
    limit = _pinned_limit(wish)
    pins_frames = limit is None or pinned_of(clip) <= limit
    if below is not None:
        tiles = tiles[min(tiles.index(below.tile) + 1, len(tiles) - 1) :]
    elif wish.tile is not None:
        tiles = tiles[:1]
    for tile in tiles[:_NUM_GOOD_TILES] if below is None else ():
        need = need_of(clip, vae_dim, tile, on_gpu=on_gpu, beside=held)
        if need.fits(budget, margin):
            return VaePlan(stage=stage, tile=tile, weights_stay=True, need=need, pins_frames=pins_frames)
    needs = {tile: need_of(clip, vae_dim, tile, on_gpu=on_gpu) for tile in tiles}
    # On a GPU no tile takes less RAM than another.
    fits = Need.fits_vram if on_gpu else Need.fits
    tile = next((tile for tile, need in needs.items() if fits(need, budget, margin)), tiles[-1])
    return VaePlan(stage=stage, tile=tile, weights_stay=False, need=needs[tile], pins_frames=pins_frames)


def retry_wish(wish: Wish, failed: Need) -> Wish:
    """Return the wish for a retry after sampling ran out of memory: any mode that takes clearly less VRAM."""
    return replace(wish, mode="auto", current=None, failed=failed)


def _fitting(sizes: Sizes, budget: Budget, wish: Wish) -> list[list[Placement]]:
    """Return the placements under which the clip can be sampled, best first, in groups of one mode."""

    def need_of(placement: Placement) -> Need:
        return sampling_need(sizes, placement, on_gpu=budget.vram is not None)

    groups = [[each for each in group if need_of(each).fits(budget)] for group in _allowed(sizes, wish)]
    if wish.failed is not None:
        limit = int(wish.failed.vram * _RETRY_SHARE)
        # Also where it is the one that failed: meanwhile everything else has left.
        least = [min(chain(*groups), key=lambda each: need_of(each).vram)] if any(groups) else []
        groups = [[each for each in group if need_of(each).vram <= limit] for group in groups]
        groups.append(least)
    return [group for group in groups if group]


def _allowed(sizes: Sizes, wish: Wish) -> list[list[Placement]]:
    """Return every placement that may be taken, best first, in groups of one mode.

    Disk comes last, but before block with weights that would leave for each decode. What it reads a step, at most the
    14 GB of FP8, it reads while the card computes: 5 s from an NVMe drive (3 GB/s), 28 s from a SATA one (0.5 GB/s);
    estimate.py gives an RTX 4060, 8 GiB, 37 s a step at 832x480x81. Block would read all of it anew before every run,
    with nothing to compute meanwhile. RAM that is left over caches the files.

    Of two experts the second may come from the drive with the first in RAM: what a clip reads is then the same as where
    the RAM for one of them is filled twice, and the next clip begins at once.
    """
    limit = _pinned_limit(wish)
    fewest_first = range(sizes.weights.num_blocks)
    most_first = fewest_first[::-1]
    by_preference: dict[str, dict[str, Sequence[int]]] = {
        "speed": {"none": (0,), "block": most_first, "phase": most_first, "disk": most_first},
        "streaming": {"block": fewest_first, "phase": fewest_first, "disk": fewest_first},
        "least": {"phase": fewest_first, "disk": fewest_first},
    }
    modes = by_preference[wish.policy.prefer]
    if wish.mode != "auto":
        modes = {wish.mode: (0,) if wish.mode == "none" else fewest_first}
    kinds = [(mode, False) for mode in modes if mode != "disk"]
    if sizes.weights.num_experts > 1:
        kinds += [(mode, True) for mode in modes if mode in ("block", "phase")]
    kinds += [(mode, False) for mode in modes if mode == "disk"]
    return [
        [
            Placement(mode=mode, resident_blocks=count, pinned_limit_bytes=limit, reads_second_expert=reads)
            for count in modes[mode]
        ]
        for mode, reads in kinds
    ]


def _pinned_limit(wish: Wish) -> int | None:
    limits = (wish.pinned_limit_bytes, wish.policy.pinned_limit_bytes)
    return min((limit for limit in limits if limit is not None), default=None)


def _tiles(wish: Wish) -> Sequence[Tile | None]:
    if wish.tile is not None:
        return (wish.tile, *(tile for tile in _TILES[1:] if tile is not None and tile.size < wish.tile.size))
    if wish.tiling == "off":
        return _TILES[:1]
    return _TILES[1:] if wish.tiling == "on" or wish.policy.prefer == "least" else _TILES


def _choose(
    sizes: Sizes, budget: Budget, groups: Sequence[Sequence[Placement]], tiles: Sequence[Tile | None]
) -> Placement:
    """Return the best placement beside which a good decode fits, so that weights need not be loaded again.

    Streaming from RAM is nearly free: rather fewer resident blocks than a slower decode.
    """
    on_gpu = budget.vram is not None
    for group in groups:
        pairs = [(placement, tile) for placement in group for tile in tiles[:_NUM_GOOD_TILES]]
        if group[0].mode in ("block", "phase") and sizes.clip.tokens >= _STREAMING_IS_FREE_TOKENS:
            pairs.sort(key=lambda pair: tiles.index(pair[1]))
        for placement, tile in pairs:
            held = resting_need(sizes.weights, placement, on_gpu=on_gpu, ranks=sizes.ranks)
            if decoding_need(sizes.clip, sizes.vae_dim, tile, on_gpu=on_gpu, beside=held).fits(budget):
                return placement
    return groups[0][0]


def _is_worth_keeping(current: Placement, best: Placement | None, sizes: Sizes, budget: Budget, wish: Wish) -> bool:
    """Say whether what is loaded fits, and not so much worse than the best that it pays to load anew."""
    allowed = {_kind(each) for group in _allowed(sizes, wish) for each in group}
    need = sampling_need(sizes, current, on_gpu=budget.vram is not None)
    if _kind(current) not in allowed or not need.fits(budget, LATER_MARGIN):
        return False
    if best is None:
        return True
    if current.mode == "disk":
        return best.mode == "disk"
    if current.reads_second_expert:
        return best.reads_second_expert or best.mode == "disk"
    return best.mode != "none" or current.mode == "none" or sizes.clip.tokens >= _STREAMING_IS_FREE_TOKENS


def _kind(placement: Placement) -> tuple[str, int, bool]:
    return placement.mode, placement.resident_blocks, placement.reads_second_expert
