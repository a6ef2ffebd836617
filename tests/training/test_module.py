"""One optimizer step of the LightningModule, by hand: multiplier, optimizer groups, hooks, trajectories."""

import inspect
import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_sparse import Probability, SparseAttentionModule
from lit_sparse.attention import gates_of
from lit_sparse.data import AdditionData
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.objective import KL, Absolute, EdgeFraction, Fixed, Geco, Lagrangian, token_losses
from lit_sparse.training.callbacks.sparsity import SparsityByHead
from lit_sparse.training.gate_noise import draw_step_seeds, seed_of
from lit_sparse.training.held_out import Evaluation
from lit_sparse.training.selection import Selection
from lit_sparse.training.start.calibration import Calibration

pytestmark = pytest.mark.usefixtures("unpainted")

DATA = {"digits": 1, "batch_size": 8, "eval_batch_size": 16, "held_out": 0.2}


class Watch(Callback):
    """Notes what every micro-batch and every step did."""

    def __init__(self):
        self.losses, self.lambdas, self.steps, self.metrics = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lambdas.append(float(pl_module.objective.multiplier.value))
        self.steps.append(trainer.global_step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer, pl_module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def make(llama_folder, kind=SparseAttentionModule, **settings):
    """A module; settings of the objective may be given beside its own."""
    objective = {name: settings.pop(name) for name in inspect.signature(Lagrangian).parameters if name in settings}
    settings.setdefault("optimizer", lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    settings["objective"] = Lagrangian(**{"constraint": KL(0.05), **objective})
    return kind(str(llama_folder), **{"gate_lr": 0.1, **settings})


def fit(module, data=None, steps=4, **settings):
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[watch, *settings.pop("callbacks", [])],
        **settings,
    )
    trainer.fit(module, datamodule=data or AdditionData(**DATA))
    return watch


class UnevenAddition(AdditionData):
    """Every second batch scores one position of three, so that a mean of means is not the mean."""

    def train_dataloader(self):
        loader = super().train_dataloader()
        collate, count = loader.collate_fn, iter(range(10**6))

        def thin(batch):
            batch = collate(batch)
            if next(count) % 2:
                batch["labels"][:, 4:] = -100
            return batch

        loader.collate_fn = thin
        return loader


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_multiplier_follows_the_token_weighted_mean_of_the_whole_step(llama_folder, accumulate):
    class Noting(SparseAttentionModule):
        seen = ()

        def constraint_per_token(self, losses):
            value = super().constraint_per_token(losses)
            if self.training:
                self.seen = (*self.seen, value.detach()[losses.scored])
            return value

    module = make(llama_folder, Noting, multiplier=Geco(rate=0.05), constraint=KL(0.5))
    watch = fit(module, UnevenAddition(**DATA), steps=3, accumulate_grad_batches=accumulate)
    assert len(module.seen) == 3 * accumulate
    assert {len(value) for value in module.seen} == {8, 16}  # 8 sequences, 1 or 2 digits scored

    expected = [1.0]
    for step in range(3):
        values = torch.cat(module.seen[step * accumulate : (step + 1) * accumulate])
        violation = (float(values.mean()) - 0.5) / 0.5
        expected.append(expected[-1] * math.exp(0.05 * min(max(violation, -1), 1)))
    assert len(set(expected)) == 4  # it moved, and was not clipped to the same step throughout
    within = [value for value in expected[:3] for _ in range(accumulate)]
    # the module sums float32 values of a micro-batch, the oracle all at once
    assert watch.lambdas == pytest.approx(within, rel=1e-6)
    assert float(module.objective.multiplier.value) == pytest.approx(expected[3], rel=1e-6)


def test_the_multiplier_is_neither_parameter_nor_buffer(llama_folder):
    module = make(llama_folder)
    module.configure_model()
    module.bfloat16()
    names = [*module.state_dict(), *dict(module.named_parameters()), *dict(module.named_buffers())]
    assert not [name for name in names if "multiplier" in name or "lambda" in name]
    assert module.objective.multiplier.value.dtype == torch.float64


def test_the_teacher_is_neither_saved_nor_trained(llama_folder):
    module = make(llama_folder)
    before = None

    class Keep(Callback):
        def on_train_start(self, trainer, pl_module):
            nonlocal before
            before = {name: value.clone() for name, value in pl_module.pair.teacher.state_dict().items()}

    watch = Keep()
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module, datamodule=AdditionData(**DATA))
    assert all(torch.equal(before[name], value) for name, value in module.pair.teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in module.pair.teacher.parameters())
    gates = {name for name in module.state_dict() if "edge_gate" in name}
    assert len(module.state_dict()) == len(module.pair.teacher.state_dict()) + len(gates)
    assert len(gates) == 2 * len(gates_of(module.model))  # cutoffs and sharpness


def test_gates_have_their_own_group(llama_folder):
    module = make(llama_folder, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1), gate_lr=0.2)
    module.configure_model()
    weights, gates = module.configure_optimizers().param_groups
    assert (weights["lr"], weights["weight_decay"]) == (1e-3, 0.1)
    assert (gates["lr"], gates["weight_decay"]) == (0.2, 0.0)
    own = [id(parameter) for gate in gates_of(module.model) for parameter in gate.parameters()]
    assert [id(parameter) for parameter in gates["params"]] == own
    everything = sorted(id(parameter) for parameter in module.model.parameters())
    assert sorted(id(p) for group in (weights, gates) for p in group["params"]) == everything


def changed(module, before):
    return {name for name, value in module.model.named_parameters() if not torch.equal(before[name], value)}


@pytest.mark.parametrize("train", ["all", "attention", "none"])
def test_only_what_is_asked_for_is_trained(llama_folder, train):
    module = make(llama_folder, train=train)
    module.configure_model()
    before = {name: value.detach().clone() for name, value in module.model.named_parameters()}
    fit(module, steps=2)
    moved = changed(module, before)
    gates = {name for name in before if "edge_gate" in name}
    attention = {name for name in before if ".self_attn." in name}
    assert gates < attention
    assert moved == {"all": set(before), "attention": attention, "none": gates}[train]


def test_nothing_to_train_is_refused(llama_folder):
    module = make(llama_folder, train="none", gate=Probability(learnable=False))
    with pytest.raises(ValueError, match="nothing to train"):
        fit(module, steps=1)


def test_adapters_train_instead_of_the_weights(llama_folder):
    pytest.importorskip("peft")
    module = make(llama_folder, lora=LoraConfig(r=2, target_modules=["q_proj", "k_proj"]))
    module.configure_model()
    before = {name: value.detach().clone() for name, value in module.model.named_parameters()}
    fit(module, steps=3)
    moved = changed(module, before)
    assert moved == {name for name in before if "lora_" in name or "edge_gate" in name}
    assert any("lora_B" in name for name in moved)


def test_distillation_adds_its_term(llama_folder):
    """The same weights, noise and batch: the losses differ by the weighted KL and nothing else."""
    plain, distilled = (make(llama_folder, multiplier=Fixed(3.0), distillation=weight) for weight in (0.0, 0.7))
    losses, kls = [], []
    for module in (plain, distilled):
        watch = fit(module, steps=1)
        losses.append(watch.losses[0])
        kls.append(float(module.trainer.callback_metrics["train/kl"]))
    assert kls[0] == kls[1] > 0
    # float32 sums of numbers of order 1
    assert losses[1] - losses[0] == pytest.approx(0.7 * kls[0] / (1 + 3.0), abs=1e-6)


def test_the_loss_is_the_lagrangian(llama_folder):
    module = make(llama_folder, multiplier=Fixed(3.0), constraint=KL(0.05), edges=EdgeFraction(2.0), train="none")
    module.configure_model()
    data = AdditionData(**DATA)
    watch = fit(module, data, steps=1, accumulate_grad_batches=1)
    metrics = module.trainer.callback_metrics
    again = make(llama_folder, train="none")
    again.configure_model()
    batch = next(iter(AdditionData(**DATA).train_dataloader()))
    again.train()
    torch.manual_seed(seed_of(0, 0, 0, 0))
    logits, edges = again(batch)
    losses = token_losses(logits, again.base_logits(batch), batch["labels"])
    kl = losses.kl[losses.scored].mean()
    expected = (2.0 * edges.expected.sum() / edges.allowed.sum() + 3.0 * kl) / 4.0
    # the same float32 operations in the same order
    assert watch.losses[0] == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["train/kl"]) == pytest.approx(float(kl), rel=1e-6)


def test_the_scheduler_steps_once_per_optimizer_step(llama_folder):
    module = make(llama_folder, scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
    fit(module, steps=3, accumulate_grad_batches=2)
    weights, gates = module.trainer.optimizers[0].param_groups
    assert weights["lr"] == pytest.approx(1e-3 / 8, rel=1e-12)
    assert gates["lr"] == pytest.approx(0.1 / 8, rel=1e-12)


def test_hooks_can_be_overridden(llama_folder):
    class Own(SparseAttentionModule):
        def build_base(self):
            base = super().build_base()
            torch.nn.init.zeros_(base.lm_head.weight)
            return base

        def is_gated(self, layer):
            return layer == 1

        def constraint_per_token(self, losses):
            return 7.0 + 0.0 * losses.ce

        def edge_loss(self, edges):
            return 5.0 + 0.0 * edges.expected.sum()

    module = make(llama_folder, Own, multiplier=Fixed(3.0), train="none", gate_lr=0.0)
    watch = fit(module, steps=1)
    assert watch.losses[0] == pytest.approx((5.0 + 3.0 * 7.0) / 4.0, rel=1e-6)  # float32
    assert [gate.closable for gate in gates_of(module.model)] == [False, True]
    assert float(module.trainer.callback_metrics["train/constraint"]) == 7.0
    assert (module.pair.teacher.lm_head.weight == 0).all()
    # uniform predictions: build_base was used for the teacher as for the model
    assert float(module.trainer.callback_metrics["train/ce"]) == pytest.approx(
        math.log(module.model.config.vocab_size), rel=1e-5
    )
    dense, gated = module.state.start.open_fraction if module.state.start else (None, None)
    assert (dense == 1).all() and (gated < 1).any()


def test_another_teacher(llama_folder):
    class Uniform(SparseAttentionModule):
        def build_teacher(self, base):
            teacher = super().build_teacher(base)
            torch.nn.init.zeros_(teacher.lm_head.weight)
            return teacher

    module = make(llama_folder, Uniform)
    fit(module, steps=1)
    assert module.state.start.base_ce == pytest.approx(math.log(module.model.config.vocab_size), rel=1e-5)  # float32
    assert module.state.start.ce != pytest.approx(module.state.start.base_ce, rel=1e-3)


def test_seeds_are_the_same_in_every_version_of_python():
    assert seed_of(0, 0, 0, 0) == 2235979303852607087 and seed_of(3, 12, 1, 2) == 4998182781310704961
    assert seed_of(-1) != seed_of(-2)  # Python's hash makes these one
    drawn = draw_step_seeds(2, (0, 5, 1), sequences=2, ranks=2, rank=1, device=torch.device("cpu"))
    assert drawn.tolist() == [
        [9157713159289443039, 5720497549342507007],
        [9147974026190340861, 3128813901884482090],
    ]


@pytest.mark.parametrize("calibration", [None, Calibration(kl=0.02)])
def test_the_start_is_measured_on_the_test_split(llama_folder, calibration):
    class WithoutValidation(AdditionData):
        def val_dataloader(self):
            raise AssertionError("a constraint that needs nothing measured reads no validation text")

    module, data = make(llama_folder, train="none", gate_lr=0.0, start=calibration), WithoutValidation(**DATA)
    fit(module, data, steps=1)
    assert module.state.start.metrics() == module.evaluate(data.test_dataloader()).metrics()


def test_a_constraint_is_prepared_on_the_validation_split(llama_folder):
    module, data = make(llama_folder, constraint=Absolute(epsilon=0.25)), AdditionData(**DATA)
    fit(module, data, steps=1)
    validation, test = (module.evaluate(batches).base_ce for batches in (data.val_dataloader(), data.test_dataloader()))
    assert (module.objective.constraint.tolerance, module.state.start.base_ce) == (validation + 0.25, test)
    assert abs(validation - test) > 0.01


def test_the_picture_of_heads_is_of_the_validation_split_alone(llama_folder, tmp_path, monkeypatch):
    """The start was measured on the test split, so it is not drawn beside it."""
    drawn = []
    logger = TensorBoardLogger(tmp_path)
    monkeypatch.setattr(logger.experiment, "add_figure", lambda name, figure, global_step: drawn.append(figure))
    module = make(llama_folder)
    fit(module, steps=1)
    module.trainer.loggers = [logger]
    assert module.last_evaluation is None
    module.last_evaluation = module.state.start
    SparsityByHead().on_validation_end(module.trainer, module)
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert [title.split(":")[0] for title in titles if title] == ["Validation split"]


def test_the_same_seed_gives_the_same_run_bitwise(llama_folder):
    runs = []
    for seed, stray in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(stray)  # what else draws random numbers must not matter
        module = make(llama_folder, seed=seed)
        watch = fit(module, steps=4)
        runs.append((watch.losses, watch.lambdas, module.state_dict()))
    assert runs[0][:2] == runs[1][:2]
    assert all(torch.equal(runs[0][2][name], runs[1][2][name]) for name in runs[0][2])
    assert runs[0][0] != runs[2][0]


def scores(module, monkeypatch, *validations):
    """`val/score` of each (edge fraction, constraint, share of exact sequences)."""
    logged = []
    monkeypatch.setattr(module, "log_dict", lambda metrics, **_: logged.append(metrics["val/score"]))
    for edge_fraction, constraint, exact in validations:
        result = Evaluation(1.0, 1.0, constraint, constraint, edge_fraction, 1.0, exact, 10, torch.ones(1, 1))
        monkeypatch.setattr(module.evaluation, "compute", lambda result=result: result)
        module.on_validation_epoch_end()
    return logged


def test_the_score_prefers_the_sparsest_that_satisfies_the_constraint(llama_folder, monkeypatch):
    module = make(llama_folder, constraint=KL(0.1))
    results = [(0.1, 0.05), (0.3, 0.1), (1.0, 0.0), (0.01, 0.101), (0.001, 0.2)]
    order = scores(module, monkeypatch, *[(*result, math.nan) for result in results])
    assert order == sorted(order) and len(set(order)) == len(order)


def test_the_score_prefers_models_that_are_exact_enough(llama_folder, monkeypatch):
    module = make(llama_folder, constraint=KL(0.1), selection=Selection(exact_match=0.99))
    results = [(0.2, 0.05, 0.99), (0.9, 0.05, 1.0), (0.1, 0.05, 0.988), (0.1, 0.101, 0.988), (0.05, 0.05, 0.9)]
    order = scores(module, monkeypatch, *results)
    assert order == sorted(order) and len(set(order)) == len(order)
    assert scores(make(llama_folder, selection=Selection(exact_match=0.0)), monkeypatch, (0.1, 0.05, 0.3)) == [0.1]
    with pytest.raises(ValueError, match="exact_match is a share"):
        Selection(exact_match=1.1)


def test_the_score_prefers_models_of_the_end(llama_folder, monkeypatch):
    module = make(llama_folder, constraint=KL(0.1), selection=Selection(after=0.5))
    monkeypatch.setattr(type(module), "progress", 0.5)
    late, missed = scores(module, monkeypatch, (0.9, 0.05, math.nan), (0.1, 0.101, math.nan))
    monkeypatch.setattr(type(module), "progress", 0.4)
    sparse, dense = scores(module, monkeypatch, (0.1, 0.05, math.nan), (1.0, 0.05, math.nan))
    assert late == 0.9 < sparse < dense < missed
    with pytest.raises(ValueError, match="after is a share"):
        Selection(after=1.0)


def test_validation_is_deterministic_and_leaves_no_trace(llama_folder):
    module = make(llama_folder)
    data = AdditionData(**DATA)
    fit(module, data, steps=1)
    first, second = (module.evaluate(data.val_dataloader()) for _ in range(2))
    assert first.metrics() == second.metrics()
    assert first.tokens == 20  # 10 pairs, 2 digits each


def test_gates_sharpen_geometrically_over_the_run(llama_folder):
    seen = []

    class Look(Watch):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append([float(gate.form().sharpness) for gate in gates_of(pl_module.model)])

    module = make(llama_folder, gate=Probability(sharpness=2.0, sharpness_end=32.0))
    fit(module, callbacks=[Look()])
    assert seen == [pytest.approx([value] * 2) for value in (2.0, 4.0, 8.0, 16.0)]


@pytest.mark.parametrize("kind", [lambda: KL(0.05), lambda: Absolute(epsilon=0.05)])
def test_a_relaxed_tolerance_falls_to_the_constraints_own(llama_folder, kind):
    """What lambda is told after each step: how far the step's value is from a tolerance of 8, 4, 2 and 1 times 0.05."""
    constraint, told, values = kind(), [], []

    class Told(Fixed):
        def update(self, violation):
            told.append(float(violation))

    class Noting(SparseAttentionModule):
        def constraint_per_token(self, losses):
            per_token = super().constraint_per_token(losses)
            if self.training:
                values.append(float(per_token.detach()[losses.scored].mean()))
            return per_token

    module = make(llama_folder, Noting, constraint=constraint, multiplier=Told(1.0), relaxation=16.0)
    fit(module)
    base = constraint.tolerance - constraint.scale  # what `Absolute` measured; 0 for KL
    looser = [16.0**share for share in (0.75, 0.5, 0.25, 0.0)]
    expected = [(value - base) / (0.05 * more) - 1 for value, more in zip(values, looser, strict=True)]
    assert told == pytest.approx(expected, rel=1e-4)  # float32 losses


def test_what_sharpens_or_tightens_needs_an_end(llama_folder):
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        fit(make(llama_folder, relaxation=2.0), steps=-1, max_epochs=1)
    with pytest.raises(ValueError, match="relaxation multiplies the tolerance"):
        make(llama_folder, relaxation=0.5)
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        fit(make(llama_folder, gate=Probability(sharpness_end=8.0)), steps=-1, max_epochs=1)
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        fit(make(llama_folder, selection=Selection(after=0.5)), steps=-1, max_epochs=1)
    with pytest.raises(ValueError, match="sharpness_end must be positive"):
        Probability(sharpness_end=0.0)
