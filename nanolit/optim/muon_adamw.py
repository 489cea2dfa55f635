"""Muon for block matrices and AdamW for the rest in one optimizer, on one device or sharded over ranks.

A step: sum gradients over ranks (all reduce-scatters at once), clip by the global norm if asked, update this
rank's share as gradients arrive, send parameters back (all-gather), wait. Gradients are summed, not averaged:
the loss must already be divided by the step's global number of learned tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanolit.machine.device import compute_dtype, world_size
from nanolit.optim.scaling import GroupSettings, check_settings
from nanolit.optim.shares import SMALL, FlatSlice, MatrixStack, Read, StateSlice
from nanolit.optim.updates import (
    POLAR_EXPRESS,
    Orthogonalization,
    adamw_update,
    apply_update,
    has_kernel,
    iterate_by_halves,
    muon_update,
    variance_dim,
)

Group = dict[str, Any]  # what torch calls a parameter group: tensors, names and numbers


def build_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    roles: Mapping[str, str],
    settings: Mapping[str, GroupSettings],
) -> list[Group]:
    """Return one group per role for AdamW, one per role and shape for Muon, in order of first appearance.

    Muon takes the blocks' matrices. Embeddings, the head and all scalars take AdamW, as Muon's author advises
    (https://kellerjordan.github.io/posts/muon/). Every group also holds names, role, initial_lr,
    initial_weight_decay. Parameters that don't require gradients are left out.
    """
    for role, chosen in settings.items():
        check_settings(role, chosen)
    groups: dict[tuple[object, ...], Group] = {}
    for name, param in named_parameters:
        if not param.requires_grad:
            continue
        role = roles[name]
        if role not in settings:
            raise ValueError(f"there are no rates for {role} ({name}); groups has {', '.join(settings)}")
        chosen = settings[role]
        # The schedule multiplies the initial values: no rounding adds up, and a resumed run needs no state
        initial = {"initial_lr": chosen["lr"], "initial_weight_decay": chosen["weight_decay"]}
        key: tuple[object, ...] = (role,)
        if chosen["kind"] == "muon":
            if param.ndim != 2:
                raise ValueError(
                    f"Muon orthogonalizes matrices, but parameter {name!r} has shape {tuple(param.shape)}; "
                    "give its role kind adamw"
                )
            # One shape a group: its matrices are stacked and orthogonalised by batched products
            key = (role, tuple(param.shape))
        group = groups.setdefault(key, {"params": [], "names": [], "role": role, **chosen, **initial})
        group["params"].append(param)
        group["names"].append(name)
    if not groups:
        raise ValueError("no parameter to optimize: none requires gradients; unfreeze at least one")
    return list(groups.values())


class MuonAdamW(torch.optim.Optimizer):
    """Build it after the process group, and after the parameters have their final device and equal values."""

    def __init__(
        self,
        groups: list[Group],
        *,
        orthogonalization: Orthogonalization,
        equilibrate_rows: bool,
        normalize_update: bool,
        variance_reduction: bool,
        cautious: bool,
        clip_norm: float | None = None,
        momentum: float = 0.95,
        variance_beta: float = 0.9,
        compile: bool | None = None,
    ) -> None:
        """groups: from build_groups. momentum: until set_multipliers is called. compile None: on CUDA only.

        clip_norm bounds the norm of all gradients together, summed over ranks; None: no clipping.
        """
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm} must be above 0; give null for no clipping")
        super().__init__(groups, {})
        device = self.param_groups[0]["params"][0].device
        self.clip_norm = clip_norm
        self.gradient_norm: Tensor | None = None  # of the last step before clipping; only known when clipping
        self.variance_beta = variance_beta
        self._flags = {
            "orthogonalization": orthogonalization,
            "dtype": compute_dtype(device),
            "equilibrate_rows": equilibrate_rows,
            "normalize_update": normalize_update,
            "cautious": cautious,
        }
        self._choose_updates(device.type == "cuda" if compile is None else compile)
        self._stacks: list[tuple[Group, MatrixStack]] = []
        self._slices: list[tuple[Group, FlatSlice]] = []
        for group in self.param_groups:
            if group["kind"] == "muon":
                group["momentum"] = momentum
                self._stacks.append((group, _stack(group, variance_reduction)))
            else:
                for name, param in zip(group["names"], group["params"], strict=True):
                    self._slices.append((group, FlatSlice(name, param)))

    def _choose_updates(self, compile: bool) -> None:
        self._muon_update, self._apply_update, self._adamw_update = muon_update, apply_update, adamw_update
        if compile:
            import torch._dynamo.config as dynamo  # slow, and only needed here

            # Dynamo keeps a graph for each shape of matrices in several models; its default of 8 is too few
            dynamo.recompile_limit = max(dynamo.recompile_limit, 64)
            self._muon_update = torch.compile(muon_update, fullgraph=True, dynamic=False)
            self._apply_update = torch.compile(apply_update, fullgraph=True, dynamic=False)
            # A graph for each of the few lengths: where the length is a variable, loads are not vectorised
            self._adamw_update = torch.compile(adamw_update, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of all parameters; runs the closure first and returns its loss. Collective over ranks.

        With clip_norm on one rank, the parameters' own gradients are scaled in place.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        shares = [share for _, share in self._stacks + self._slices]
        for share in shares:
            share.start_reduce()
        if self.clip_norm is not None:
            self._clip(self.clip_norm)
        for group, stack in self._stacks:
            self._step_muon(group, stack)
        for group, flat in self._slices:
            self._step_adamw(group, flat)
        for share in shares:
            share.finish()
        return loss

    def set_multipliers(self, *, lr: float, momentum: float, weight_decay: float) -> None:
        """Set this step's rates (initial ones times lr), Muon's decay (times weight_decay) and its momentum.

        AdamW's decays stay as they are set: nanochat's schedule moves only Muon's.
        """
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * lr
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = group["initial_weight_decay"] * weight_decay

    def state_slices(self) -> dict[str, StateSlice]:
        """This rank's share of the state by "<parameter>/<buffer>"; all ranks' together are the whole."""
        slices: dict[str, StateSlice] = {}
        for _, share in self._stacks + self._slices:
            slices.update(share.state_slices())
        return slices

    @torch.no_grad()
    def load_state_slices(self, read: Read) -> None:
        """Fill this rank's share from read(key, start, stop): slices of flattened full tensors.

        It doesn't matter how many ranks saved them. Where read returns None, that state starts fresh. Rates
        stay as they are.
        """
        for _, share in self._stacks + self._slices:
            share.load_state_slices(read)

    def state_dict(self) -> dict:
        raise ValueError(
            "each rank holds only its share of the optimizer state; save state_slices() of all ranks"
        )

    def load_state_dict(self, state_dict: dict) -> None:
        raise ValueError("the optimizer state is stored in slices; use load_state_slices()")

    def _clip(self, clip_norm: float) -> None:
        gradients = [gradient for _, stack in self._stacks for gradient in stack.gradients()]
        counted = gradients + [flat.gradients() for _, flat in self._slices if flat.counts_in_norm]
        replicas = [flat.gradients() for _, flat in self._slices if not flat.counts_in_norm]
        square = torch.stack([g.float().square().sum() for g in counted]).sum()
        if world_size() > 1:
            dist.all_reduce(square)
        self.gradient_norm = square.sqrt()
        scale = (clip_norm / (self.gradient_norm + 1e-6)).clamp(max=1.0)
        for g in counted + replicas:
            g.mul_(scale)

    def _step_muon(self, group: Group, stack: MatrixStack) -> None:
        gradients, params_NRS = stack.gradients(), stack.own_params()
        if stack.names and params_NRS.is_cuda and self._by_halves(params_NRS):
            self._step_by_halves(group, stack, gradients, params_NRS)
        elif stack.names:
            self._muon_update(
                params_NRS,
                torch.stack(gradients),
                stack.buffers["momentum"],
                stack.buffers.get("second_moment"),
                *_scalars(group["lr"], group["momentum"], group["weight_decay"], self.variance_beta),
                **self._flags,
            )
        stack.start_gather()

    def _by_halves(self, params_NRS: Tensor) -> bool:
        """Return True if our kernels serve: they balance rows and have Polar Express's polynomials."""
        flags = self._flags["equilibrate_rows"], self._flags["orthogonalization"]
        return flags == (True, "polar_express") and has_kernel(params_NRS.device, min(params_NRS.shape[-2:]))

    def _step_by_halves(
        self, group: Group, stack: MatrixStack, gradients: list[Tensor], params_NRS: Tensor
    ) -> None:
        """Compute `muon_update` by our kernels."""
        from nanolit.kernels import muon_kernel  # imports Triton

        momentum_NRS = stack.buffers["momentum"]
        balanced_NRS = muon_kernel.balanced_rows(gradients, momentum_NRS, group["momentum"])
        self._apply_update(
            params_NRS,
            iterate_by_halves(balanced_NRS, POLAR_EXPRESS),
            stack.buffers.get("second_moment"),
            *_scalars(group["lr"], group["weight_decay"], self.variance_beta),
            normalize_update=self._flags["normalize_update"],
            cautious=self._flags["cautious"],
        )

    def _step_adamw(self, group: Group, flat: FlatSlice) -> None:
        flat.num_steps += 1
        beta1, beta2 = group["betas"]
        gradient = flat.gradients()
        if gradient.numel() > 0:
            # Small ones are not worth a kernel; of one element, Inductor's fails (torch 2.11)
            update = adamw_update if flat.flat.numel() < SMALL else self._adamw_update
            update(
                flat.own,
                gradient,
                flat.exp_avg,
                flat.exp_avg_sq,
                *_scalars(group["lr"], beta1, beta2, group["eps"], group["weight_decay"]),
                *_scalars(1 - beta1**flat.num_steps, 1 - beta2**flat.num_steps),
            )
        flat.start_gather()


def _stack(group: Group, variance_reduction: bool) -> MatrixStack:
    num_rows, num_columns = group["params"][0].shape
    buffers = {"momentum": (num_rows, num_columns)}
    if variance_reduction:
        along_rows = variance_dim(num_rows, num_columns) == -1
        buffers["second_moment"] = (num_rows, 1) if along_rows else (1, num_columns)
    return MatrixStack(group["names"], group["params"], buffers)


def _scalars(*values: float) -> list[Tensor]:
    """Make 0-D tensors on the CPU: kernels read them as arguments, so new values don't recompile anything."""
    return [torch.tensor(value, dtype=torch.float32) for value in values]
