"""Training, fine-tuning and adaptation: from manifests to a checkpoint.

A run's folder holds the checkpoints best/ and last/, findings.jsonl (skipped or suspicious utterances with reasons),
metrics.jsonl, TensorBoard files, curves.png and samples.txt. It can be named wherever a checkpoint can. config.json of
a checkpoint records every setting, versions, the commit and the SHA-256 of every manifest.

Resuming: `--resume` continues from last/, which is from an evaluation or at most ten minutes old. On a CPU it ends with
the weights of an undisturbed run, bit by bit. Changed options are printed and apply from there on. The model, its text
and what is trained (`--init-from`, `--train-only`, `--freeze`) cannot change.

Steps: a loss that is not finite, or ten times the usual one, skips the step and names the worst utterances. After 20
such steps in a row the run stops. A batch that does not fit in memory is divided and gives the same gradient.
`--workers` processes load and augment audio and sample SpecAugment masks. The device computes the spectrograms of a
whole batch.

Several processes share each step, by torchrun or accelerate. On each of four machines of eight GPUs, with code, data
and output on a shared disk:

    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id run1 --rdzv-endpoint FIRST_MACHINE:29500 \\
      -m focusasr train --config run.toml --output-dir /shared/runs/mine

A step then is `accumulate` x 32 batches of `batch_seconds`: lower `--steps` and raise `--learning-rate`. Two processes
with one batch each have the loss curve of one with `--accumulate 2`, to 1e-5. Two such "machines" on one host had the
weights of one process to 4e-7 after 12 steps. Real machines and GPUs have not been tried. `accelerate launch --cpu`
starts only one process: use torchrun there.

Fine-tuning causes forgetting: use fewer steps and a lower learning rate, and mix in recordings of what the model shall
still transcribe: with transcripts as manifests, or without, by `--keep`, if it started from a Whisper model.

Reading order: run, dataset, batching, augment, step, trainer, finetune, adapter.
"""
