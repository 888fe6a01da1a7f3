"""The norm of all gradients over ranks, from each rank's own part of them.

A read-out adds the parts of the ranks up, so each gradient may be given by one rank only: that of a whole parameter, which
every rank has, by the first rank of the group; a part of a DTensor by the ranks that hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pplmon.measure.private_names import is_flat_shard, norm_each
from pplmon.measure.tokens import is_dtensor
from pplmon.tally.own_numbers import digits_of
from pplmon.tally.ranks import Group

NARROW = (torch.bfloat16, torch.float16)  # too few digits for a sum of squares


class _Mesh(NamedTuple):
    """The place of this rank in a device mesh."""

    place: Sequence[int]
    counts: bool  # it holds the group's first rank: other meshes of the run hold replicas
    beyond: list[Any]  # process groups of its dimensions along which ranks lie outside the group


class GradNorm:
    """Adds up the squares of this rank's part of the gradients, so that parts of all ranks add to the square of the norm."""

    def __init__(self) -> None:
        self._meshes: dict[Any, _Mesh] = {}

    @torch.no_grad()
    def squares(self, parameters: Iterable[nn.Parameter], group: Group) -> Tensor | None:
        """Return the part as [CELLS] int64 digits; ``None`` if no parameter has a gradient. Never waits for the device.

        Where gradients are cut over ranks outside the group, as by tensor parallelism, there is one small collective with
        those ranks.

        Raises:
            TypeError: parameters are flat shards, which do not say who holds what.
        """
        local: dict[Any, tuple[torch.device, list[Tensor]]] = {}  # by mesh, with the device of its gradients
        for parameter in parameters:
            grad: Any = parameter.grad
            if grad is None:
                continue
            if is_flat_shard(parameter):
                raise TypeError(
                    "grad_norm=True cannot tell who holds which part under FullyShardedDataParallel: use fully_shard (FSDP2), or log "
                    'model.clip_grad_norm_(…) by pplmon.log(module, "optim/grad_norm", norm)'
                )
            mesh = grad.device_mesh if is_dtensor(grad) else None
            mine = self._mine(grad, group) if mesh is not None else grad if group.rank == 0 else None
            _, parts = local.setdefault(mesh, (grad.device, []))
            if mine is not None and mine.numel():
                parts.append(mine.coalesce().values() if mine.is_sparse else mine)
        if not local:
            return None
        digits = [self._of_mesh(mesh, parts, device, group) for mesh, (device, parts) in local.items()]
        return torch.stack(digits).sum(0)

    def _of_mesh(self, mesh: Any, parts: Sequence[Tensor], device: torch.device, group: Group) -> Tensor:
        digits = digits_of(_sum_of_squares(parts, device))
        for beyond in [] if mesh is None else self._seen(mesh, group).beyond:
            dist.all_reduce(digits, dist.ReduceOp.SUM, group=beyond)
        return digits

    def _mine(self, grad: Any, group: Group) -> Tensor | None:
        """Return the local part of a DTensor if this rank is the one to give it."""
        if any(placement.is_partial() for placement in grad.placements):
            from torch.distributed.tensor import Replicate

            grad = grad.redistribute(placements=[Replicate() if p.is_partial() else p for p in grad.placements])
        mesh = self._seen(grad.device_mesh, group)
        first = all(not p.is_replicate() or at == 0 for p, at in zip(grad.placements, mesh.place))
        return grad.to_local() if first and mesh.counts else None

    def _seen(self, mesh: Any, group: Group) -> _Mesh:
        if mesh not in self._meshes:
            ours = set(group.ranks)
            dimensions = [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
            beyond = [one for one in dimensions if not ours.issuperset(dist.get_process_group_ranks(one))]
            holds_first = group.ranks[0] in mesh.mesh.flatten().tolist()
            self._meshes[mesh] = _Mesh(mesh.get_coordinate() or (), holds_first, beyond)
        return self._meshes[mesh]


def _sum_of_squares(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of all squares as a 0-dim float64, of no part on ``device``."""
    narrow = [part for part in parts if part.dtype in NARROW]
    wide = [part for part in parts if part.dtype not in NARROW]
    norms = [*(norm_each(narrow, 2, torch.float32) if narrow else ()), *(norm_each(wide, 2) if wide else ())]
    if not norms:
        # Made on the device: a copy to it would be waited for. MPS has no float64.
        return torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    device = norms[0].device
    stacked = torch.stack([norm.to(device, torch.float32 if norm.dtype in NARROW else norm.dtype) for norm in norms])
    if device.type == "mps":  # it has no float64; only there is the device waited for
        stacked = stacked.cpu()
    return stacked.double().square().sum()
