"""The commands of a whole run, and the options of theirs that matter first."""

from lit_sparse.commands.run_command import Knob, RunCommand

_CONFIG = Knob("config", "FILE", "YAML file, or the name of a shipped config (`lit-sparse configs`); may be repeated")
_CKPT = Knob("ckpt_path", "FILE", "checkpoint to measure, such as runs/mine/checkpoints/best.ckpt")
_MODEL = Knob("model.model", "NAME", "base model: folder, hub name, or package:NAME")
_SOURCES = Knob("data.sources", "'[my_text/*.txt]'", "text: globs, python-docs, docs:PACKAGE, hf:DATASET")

FIT = RunCommand(
    name="fit",
    summary="train a sparse model",
    description="Trains by a config, and writes the model, a report and plots into the run's folder.",
    example="lit-sparse fit --config quickstart --run_dir runs/mine",
    knobs={
        "run": [
            _CONFIG,
            Knob("run_dir", "runs/default", "folder that everything is written to"),
            Knob("on_existing", "error", "action where run_dir exists (error, resume, overwrite)"),
            Knob("seed_everything", "0", "seed of the initial adapters"),
        ],
        "model and text": [
            _MODEL,
            _SOURCES,
            Knob("data.sequence_length", "512", "tokens of a sequence"),
            Knob("data.batch_size", "8", "sequences of a step, on each device"),
        ],
        "sparsity against loss": [
            Knob("model.gate", "Contribution", "family of gates (Contribution, Probability, Logit)"),
            Knob("model.objective.constraint", "KL", "what is held (KL, Paired, Absolute)"),
            Knob("model.objective.constraint.tolerance", "0.1", "largest value, nats per token"),
            Knob("model.start", "'{kl: 0.005}'", "cutoffs calibrated before training, to this KL"),
            Knob("model.lora", "'{r: 16}'", "adapters of this rank; null trains the weights"),
        ],
        "training": [
            Knob("trainer.max_steps", "-1", "optimizer steps"),
            Knob("trainer.precision", "null", "such as bf16-mixed; null is 32-true"),
            Knob("trainer.devices", "auto", "GPUs, or processes on CPUs"),
            Knob("trainer.strategy", "auto", "ddp, or a class such as SparseDeepSpeedStrategy"),
            Knob("trainer.accelerator", "auto", "cpu, gpu, or what there is"),
        ],
    },
    run="lit_sparse.commands.fit:fit_command",
)


def _measuring(name: str, split: str) -> RunCommand:
    return RunCommand(
        name=name,
        summary=f"measure a checkpoint of a run on its {split} split",
        description="Prints edges and losses of a checkpoint, by the config of its run.",
        example=f"lit-sparse {name} --config runs/mine/config.yaml --ckpt_path runs/mine/checkpoints/best.ckpt",
        knobs={"run": [_CONFIG, _CKPT], "model and text": [_MODEL, _SOURCES]},
        run="lit_sparse.commands.fit:fit_command",
    )


VALIDATE, TEST = _measuring("validate", "validation"), _measuring("test", "test")

INFO = RunCommand(
    name="info",
    summary="size, memory of a GPU and time of a step, before anything is loaded",
    description=(
        "Builds a config's model without weights, and prints the memory of a GPU by part and by strategy. Strategy, "
        "devices and precision are the config's; the options below ask for others. It takes every option of fit."
    ),
    example="lit-sparse info --config paper/olmo-7b --gpus 32 --tflops 400",
    knobs={
        "run": [
            _CONFIG,
            _MODEL,
            Knob("gpus", "null", "GPUs; null: the trainer's devices x num_nodes"),
            Knob("strategy", "null", "such as ddp, zero3, fsdp; null: the trainer's"),
            Knob("tflops", "null", "peak TFLOP/s of a GPU, for the time of a step"),
            Knob("utilisation", "0.4", "share of that peak that is reached"),
        ]
    },
    more=("gpus", "strategy", "tflops", "utilisation"),
    run="lit_sparse.commands.info:info_command",
)
