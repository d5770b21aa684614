"""Of checkpoints and models."""

from told import Told

TOPIC = "Training and models"

TOLD = {
    "bundle-damaged": Told(
        message="is damaged ...; copy it again, or remove it and run geochip.train_ddp again",
        meaning="`model.json` or `model.safetensors` does not hold what geochip wrote: it was edited, cut short or mixed "
        "with another model's. The message names the field.",
        remedy="Copy the directory again from where it was whole; or remove it and run training again, which writes it from "
        "the last checkpoint, byte for byte.",
    ),
    "checkpoint-damaged": Told(
        message="is damaged (...); remove it and run the same command again",
        meaning="A checkpoint in `train/` has the checksum that its name says and holds something else than a training: it was "
        "edited, or written by another program.",
        remedy="Remove that file: training goes on after the checkpoint before it, or begins anew without one.",
    ),
    "checkpoint-of-another-network": Told(
        message="does not fit the network of this training (...); remove it",
        meaning="A checkpoint's weights, or its optimizer's state, are of another network than the run file describes.",
        remedy="Remove that file, or give the settings of the training that it belongs to.",
    ),
    "checkpoint-is-code": Told(
        message="holds something else than the numbers of a training, and loading it could run code",
        meaning="A checkpoint holds Python objects. geochip loads tensors, numbers and text only "
        "(`torch.load(weights_only=True)`), so nothing of it was run.",
        remedy="Find out who wrote it; remove it: training goes on after the checkpoint before it.",
        page="security",
    ),
    "training-diverged": Told(
        message="the training has diverged; begin another with a smaller --train.lr (...) and another run_dir, or remove ...",
        meaning="A loss, or the weights after a step, are NaN or infinity: nothing of it was saved.",
        remedy="A smaller train.lr.",
    ),
}
