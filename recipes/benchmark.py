"""Training steps, attacks, memory and start-up measured beside each other at real size: ViT-B/32 and ViT-B/16.

    hpt benchmark                                                     # a training step and PGD-10 in evaluation
    hpt benchmark --measure step evaluation memory growth trainer startup --output_dir outputs/speed
    hpt benchmark --measure step compiled --precision bf16 --images 64
    hpt benchmark --measure objectives --objectives tecoa hpt "0.5*hpt + tecoa" --images 8 --classes 25
    hpt benchmark --measure training --batch_size 1 --steps 300 --compile True
    hpt benchmark --measure attacks --attacked outputs/quickstart/target outputs/quickstart/robust
    hpt benchmark --measure loading --dataset cifar10=PATH --batch_size 128
    hpt benchmark --models quickstart                                 # small models: seconds

Weights and images are random, and nothing is downloaded. Variants are timed in turn within one process, so that their
ratios, of which each round gives one, hold on a noisy machine; on one thread of a CPU, process time is taken. What is
compared must first come to the same in float32: otherwise it isn't timed, and the command ends with exit code 1.

- `step`: HPT's training step beside the published order of work (all prompts re-encoded at every forward pass, padded
  to 77; `backward()` into all weights in the attack; the proxy with gradients), beside itself on transformers' own
  towers, and as a share of the machine's own rate of matrix products, counting what a step can't do without;
- `compiled`: the step on compiled towers, beside the same that aren't, in one precision;
- `evaluation`: PGD-10 and the verdicts, likewise;
- `clean`: a step of the anchor stage with what the proxy makes of clean images kept, beside one that asks it;
- `attacks`: attacks on trained models in pools of batches, beside batch by batch;
- `memory`: peaks of the two orders of work, on a CPU each in a process of its own, at half the images and classes;
  what an image takes, and how many would fit;
- `growth`: the step's time over classes, images, PGD steps and image sizes;
- `trainer`: what `Trainer` adds to the bare step, at this size and at a small one;
- `startup`: seconds until the first step is done, with many rows, and with many classes and templates;
- `objectives`: steps of several objectives; `training`: steps and memory of a training, compiled if asked; `loading`:
  images on their way from the file to the batch.

`--output_dir` gets all rounds with versions and machine as `benchmark.json`, after each measurement, and a picture.
"""

from hpt.benchmarking.run import run_benchmark
from hpt.benchmarking.settings import Settings
from hpt.cli import parse_config, run_recipe


def main():
    (settings, _) = parse_config((Settings,))
    run_benchmark(settings)


if __name__ == "__main__":
    run_recipe(main)
