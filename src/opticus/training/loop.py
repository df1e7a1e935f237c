"""The training loop: one readable function over contracts. It knows no model, no data set and no metric."""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from opticus.layers.average import Average, ramp
from opticus.layers.norm import sync_norms
from opticus.ops import collectives
from opticus.structures import Batch, Objective, Progress, TrainError, Watched
from opticus.training import optim, state
from opticus.training.freeze import Freezer, layer_factors
from opticus.training.log import Bar, Log
from opticus.training.recipe import Job, Outcome
from opticus.weights.save import save

GRACE = 0.1  # share of a run before an alarm is given


def loop(job: Job) -> Outcome:
    """Train `job.objective` and return the network to use.

    Bit-exact resume: batches are a function of (seed, step), each step seeds the global generators from (seed, step, process),
    and the state file holds the objective, every optimiser, the average and the generators. Raises TrainError on a non-finite
    loss (naming the batch's samples), on other resume conditions, or on an unwritable folder.
    """
    run = Run(job)
    with run.bar_and_log(), deterministic(run.device), interruptible() as interrupted:
        batches = job.batches(run.step * job.recipe.accumulate, run.rank, run.world)
        while run.step < job.steps and run.stopped == "finished":
            run.train_step([next(batches) for _ in range(job.recipe.accumulate)])
            if run.due_evaluation():
                run.evaluate()
            if run.agreed(interrupted()):
                run.stopped = "interrupted"
            if run.step % job.recipe.save_every == 0 or run.step == job.steps or run.stopped != "finished":
                run.save()
        if job.steps == 0 or not (job.out / "weights" / "last.safetensors").is_file():
            run.save()
    if run.stopped == "interrupted":
        raise KeyboardInterrupt
    return Outcome(run.evaluated(), job.out, run.step, run.values, run.best, run.stopped)


class Run:
    """The moving parts of one run."""

    def __init__(self, job: Job) -> None:
        self.job, self.recipe = job, job.recipe
        self.accelerator = _accelerator(job.recipe.precision, job.recipe.device)
        self.device: torch.device = self.accelerator.device
        self.rank, self.world = collectives.rank(), collectives.world_size()
        self.dtype = torch.float64 if job.recipe.precision == "fp64" else torch.float32
        self.objective = cast(Any, job.objective).to(self.device, self.dtype)
        if self.world > 1:
            sync_norms(self.objective)
        self.names = self._phase_names()
        self.freezer = Freezer(job.objective.network, job.recipe)
        decay = job.recipe.layer_decay
        factors = {} if decay is None else layer_factors(job.objective.network, decay)
        self.optimisers = {name: optim.build(job.objective, name, self._rule(name), factors) for name in self.names}
        self.trained = {name: [p for p in job.objective.parameters_of(name) if p.requires_grad] for name in self.names}
        self.wrapped: Any = self._prepare()
        slow = job.recipe.average
        self.average = None if slow is None else Average(job.objective.network, decay=ramp(slow))
        self.step, self.waited, self.stopped, self.alarmed = 0, 0, "finished", False
        self.best: float | None = None
        self.values: dict[str, float] = {}
        self.environment = state.environment(self.world, self.device.type) | job.conditions()
        self.started, self.seen = time.perf_counter(), 0
        if job.resume:
            self._resume()

    # --- one step -------------------------------------------------------------------------------------------------------

    def train_step(self, batches: list[Batch]) -> None:
        """One optimiser step per phase on the same micro-batches."""
        batches = [batch.to(self.device, self.dtype) for batch in batches]
        terms: dict[str, float] = {}
        for index, phase in enumerate(self.job.objective.phases(self.step)):
            self._seed(index)
            at = self.at(phase)
            terms |= self._phase(phase, at, batches)
            self.job.objective.after_step(at)
        if self.average is not None:
            self.average.update(self.job.objective.network)
        self.step += 1
        self.seen += sum(len(batch) for batch in batches) * self.world
        loss = sum(terms.values())
        self.bar.step(loss, self.seen / (time.perf_counter() - self.started), self.last_figure())
        if self.step % self.recipe.log_every == 0 or self.step == self.job.steps:
            shown = {f"train/{name}": value for name, value in terms.items()} | {"train/loss": loss}
            self._write(shown | self._watched())

    def _watched(self) -> dict[str, float]:
        """Figures of an objective that can collapse; the user is told when they say that it does (and again after it recovered)."""
        objective = self.job.objective
        if not isinstance(objective, Watched):
            return {}
        figures = objective.figures()
        young = self.step < GRACE * self.job.steps  # untrained networks, too, say nearly the same about all pictures
        alarm = None if young else objective.alarm(figures)
        if alarm is not None and not self.alarmed and self.rank == 0:
            what = getattr(objective, "warns", "the representation collapses")
            self.bar.tell(f"opticus: step {self.step}: {what}: {alarm}")
        self.alarmed = alarm is not None
        return {f"watch/{name}": value for name, value in figures.items()} | {"watch/alarm": float(self.alarmed)}

    def _phase(self, phase: str, at: Progress, batches: list[Batch]) -> dict[str, float]:
        optimiser = self.optimisers[phase]
        optim.apply_schedules(optimiser, self.recipe.schedules, at.fraction)
        self._freeze_all_but(phase)
        self.freezer.apply(at.fraction, again=len(self.names) > 1)
        for other in self.optimisers.values():  # no phase sees the gradients of another
            other.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last or self.world == 1 else self.accelerator.no_sync(self.wrapped):
                terms: dict[str, Tensor] = self.wrapped(batch, at)
                loss = torch.stack([term.reshape(()) for term in terms.values()]).sum() / len(batches)
                self._check(loss, terms, batch)
                self.accelerator.backward(loss)
            for name, term in terms.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + term.detach() / len(batches)
        self.job.objective.before_update(at)
        clip = self._rule(phase).clip
        if clip is not None or self.recipe.precision != "fp16":
            norm = self.accelerator.clip_grad_norm_(self.trained[phase], math.inf if clip is None else clip)
            if self.recipe.precision != "fp16" and not bool(torch.isfinite(norm)):  # fp16's scaler skips such steps itself
                ids = _some([id for batch in batches for id in batch.ids])
                raise TrainError(f"the gradient is not finite at step {self.step}, though the loss is; samples of the batch: {ids}")
        optimiser.step()
        return dict(zip(totals, torch.stack(list(totals.values())).tolist()))

    def _check(self, loss: Tensor, terms: dict[str, Tensor], batch: Batch) -> None:
        if bool(torch.isfinite(loss)):
            return
        values = {name: float(term.detach()) for name, term in terms.items()}
        bad = [f"{name}={value:g}" for name, value in values.items() if not math.isfinite(value)]
        inputs = (
            ""
            if batch.images is None or bool(torch.isfinite(batch.images.pixels).all())
            else "; the pictures hold non-finite pixels"
        )
        ids = _some(batch.ids)
        raise TrainError(
            f"the loss is not finite at step {self.step} ({', '.join(bad) or 'their sum'}){inputs}; samples of the batch: {ids}"
        )

    def _freeze_all_but(self, phase: str) -> None:
        if len(self.names) == 1:
            return
        for name, parameters in self.trained.items():
            for parameter in parameters:
                parameter.requires_grad_(name == phase)
        for parameter in self.trained[phase]:
            parameter.requires_grad_(True)

    def _seed(self, phase: int) -> None:
        """Every generator that a method may draw from becomes a function of (seed, step, phase, process)."""
        key = np.random.SeedSequence([self.recipe.seed & 0xFFFF_FFFF, self.step, phase, self.rank])
        first, second = (int(word) for word in key.generate_state(2, np.uint64))
        torch.manual_seed(first)
        random.seed(second)
        np.random.seed(second & 0xFFFF_FFFF)

    def at(self, phase: str = "all") -> Progress:
        """Where the run is."""
        per_epoch = max(self.job.steps_per_epoch, 1)
        epochs = -(-self.job.steps // per_epoch)
        return Progress(self.step, self.step // per_epoch, self.job.steps, epochs, phase, (self.step + 1) % per_epoch == 0)

    def agreed(self, stop: bool) -> bool:
        """Whether any process wants to stop: all must stop after the same step, or they wait for each other for ever."""
        return stop if self.world == 1 else bool(collectives.all_reduce(torch.tensor(float(stop), device=self.device)) > 0)

    # --- evaluation -----------------------------------------------------------------------------------------------------

    def due_evaluation(self) -> bool:
        """Whether an evaluation follows the step that was just made."""
        every = self.recipe.evaluate_every
        if self.job.evaluate is None or every == 0:
            return False
        return self.step == self.job.steps or self.step % (every or max(self.job.steps_per_epoch, 1)) == 0

    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved: the average where there is one."""
        return self.job.objective.network if self.average is None else self.average.network

    def evaluate(self) -> None:
        """Evaluate, keep the best weights, and stop when patience is spent."""
        if self.job.evaluate is None:
            return
        network = self.evaluated()
        modes = {module: module.training for module in network.modules()}
        self.values = self.job.evaluate(network.eval())
        for module, training in modes.items():
            module.training = training
        self._write({f"val/{name}": value for name, value in self.values.items()})
        if self.job.metric not in self.values:
            raise TrainError(f"the evaluation has no figure {self.job.metric!r}; it has {', '.join(self.values)}")
        value = self.values[self.job.metric]
        better = self.best is None or (value < self.best if self.job.lower_is_better else value > self.best)
        self.waited = 0 if better else self.waited + 1
        if better:
            self.best = value
            self._save_weights("best")
        if self.recipe.patience is not None and self.waited >= self.recipe.patience:
            self.stopped = "patience"

    def last_figure(self) -> dict[str, str]:
        """The last validation figure, for the bar."""
        return {self.job.metric: f"{self.values[self.job.metric]:.3f}"} if self.job.metric in self.values else {}

    # --- keeping --------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state and weights/last; each file is replaced as a whole or not at all."""
        if self.rank == 0:
            self._save_weights("last")
            state.save_state(self.job.out, self._state())
        collectives.barrier()

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "waited": self.waited,
            "values": self.values,
            "stopped": self.stopped == "patience",
            "environment": self.environment,
            "objective": cast(Any, self.job.objective).state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "rng": state.rng_state(),
        }

    def _resume(self) -> None:
        saved = state.load_state(self.job.out)
        state.check_environment(saved["environment"], self.environment, self.job.out)
        try:
            cast(Any, self.job.objective).load_state_dict(saved["objective"])
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(saved["optimisers"][name])
            if self.average is not None and saved["average"] is not None:
                self.average.load_state_dict(saved["average"])
            if self.accelerator.scaler is not None and saved.get("scaler"):
                self.accelerator.scaler.load_state_dict(saved["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise TrainError(f"{self.job.out}: its state does not fit this model and recipe ({reason})") from error
        self.step, self.best, self.waited, self.values = saved["step"], saved["best"], saved["waited"], saved["values"]
        self.stopped = "patience" if saved["stopped"] else "finished"
        state.set_rng_state(saved["rng"])

    def _save_weights(self, name: str) -> None:
        if self.rank == 0:
            meta = {**self.job.meta, "step": self.step, "values": self.values}
            save(self.evaluated(), self.job.out / "weights" / f"{name}.safetensors", meta=meta)

    def _write(self, values: dict[str, float]) -> None:
        if self.rank != 0:
            return
        rates = {f"lr/{name}": float(o.param_groups[0]["lr"]) for name, o in self.optimisers.items()}
        seconds = time.perf_counter() - self.started
        self.log.write({"step": self.step, "epoch": self.at().epoch, "seconds": seconds, **values, **rates})

    # --- setting up -----------------------------------------------------------------------------------------------------

    @contextmanager
    def bar_and_log(self) -> Generator[None]:
        """The progress bar and results.csv, closed whatever happens."""
        quiet = self.job.quiet or self.rank != 0
        self.bar, self.log = Bar(self.job.steps, self.step, quiet), Log(self.job.out, self.step if self.job.resume else None)
        try:
            yield
        finally:
            self.bar.close()
            self.log.close()

    def _phase_names(self) -> tuple[str, ...]:
        steps = range(max(self.job.steps, 1))  # a phase may join late in the run
        return tuple(dict.fromkeys(name for step in steps for name in self.job.objective.phases(step)))

    def _rule(self, phase: str) -> optim.Optim:
        rules = self.recipe.optim
        if phase in rules:
            return rules[phase]
        if "all" in rules:
            return rules["all"]
        raise TrainError(f"the recipe has no optimiser for phase {phase!r} (it has {', '.join(rules)})")

    def _prepare(self) -> Any:
        if self.world == 1:
            prepared = self.accelerator.prepare_model(self.objective, device_placement=False)
        else:
            from accelerate.utils import DistributedDataParallelKwargs  # part of the deferred accelerate import

            self.accelerator.ddp_handler = DistributedDataParallelKwargs(
                find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
            )
            prepared = self.accelerator.prepare_model(self.objective)
        if self.recipe.precision == "fp16":
            self.optimisers = {n: self.accelerator.prepare_optimizer(o) for n, o in self.optimisers.items()}
        return prepared


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:32]) + (", ..." if len(ids) > 32 else "")


def _accelerator(precision: str, device: str) -> Any:
    from accelerate import Accelerator  # slow to import, needed only for training
    from accelerate.state import AcceleratorState

    # one process may train several runs in turn; accelerate keeps the first one's precision for ever unless told otherwise
    AcceleratorState._reset_state()  # pyright: ignore[reportPrivateUsage]
    mixed = {"bf16": "bf16", "fp16": "fp16"}.get(precision, "no")
    return Accelerator(mixed_precision=mixed, cpu=device == "cpu" or not torch.cuda.is_available())


@contextmanager
def deterministic(device: torch.device) -> Generator[None]:
    """Deterministic algorithms while training (on a GPU, operations that have none only warn)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


@contextmanager
def interruptible() -> Generator[Any]:
    """The first Ctrl-C or SIGTERM lets the step finish and the state be written; a second Ctrl-C stops at once."""
    hit: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if hit:
            raise KeyboardInterrupt
        hit.append(number)

    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: signals go to whoever owns them
        previous = {}
    try:
        yield lambda: bool(hit)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


__all__ = ["Objective", "Run", "deterministic", "interruptible", "loop"]
