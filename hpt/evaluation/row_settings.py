"""What a row says of its samples and of its attack, beside what its model says of itself: see [`Evaluated`].

subject.settings(benchmark) | sample_settings(benchmark, hash_benchmark(benchmark)) | clean_settings()
"""

from hpt.attacks import Attack
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import GEOMETRIES
from hpt.data.hashing import hash_samples
from hpt.evaluation.rows import CLEAN
from hpt.json_files import digest


def sample_settings(benchmark: Benchmark, samples: str) -> dict:
    """What a row says of its samples; `samples` is their hash, from [`hash_benchmark`]."""
    return {
        "n": len(benchmark),
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "attack_space": benchmark.attack_space,
        "samples": samples,
    }


def clean_settings() -> dict:
    """What a row says of its attack if there is none."""
    settings = dict.fromkeys(("attacked", "eps", "norm", "steps", "step_size", "restarts", "other_model"))
    return settings | {"attack": CLEAN, "parameters": {}, "left_out": []}


def attack_settings(attack: Attack, text: str, attacked: str, num_classes: int, **parameters) -> dict:
    """What a row says of its attack.

    Args:
        attack ([`Attack`]): What ran.
        text (`str`): What it is called, such as `"pgd:steps=50"`.
        attacked (`str`): Name of the model that its images are made against.
        num_classes (`int`): Of the benchmark: parts of a suite may be left out.
        parameters: What else its strength depends on, beside its own.
    """
    parameters = attack.parameters | parameters
    strength = {name: parameters.get(name) for name in ("steps", "step_size", "restarts")}
    return strength | {
        "attack": text,
        "attacked": attacked,
        "eps": attack.eps,
        "norm": attack.norm,
        "parameters": parameters,
        "left_out": attack.left_out(num_classes),
    }


def hash_benchmark(benchmark: Benchmark) -> str:
    """16 hexadecimal digits that stand for the ids, images, labels and class names of a benchmark's samples."""
    samples = [benchmark.ids().tolist(), hash_samples(benchmark.dataset), benchmark.class_names]
    return digest(samples + _unusual_pixels(benchmark))


def _unusual_pixels(benchmark: Benchmark) -> list[str]:
    """What makes other pixels of the same images, and isn't in a row's `attack_space`."""
    plain = benchmark.transform is None or str(benchmark.transform) in (*GEOMETRIES, benchmark.attack_space)
    geometry = [] if plain else [str(benchmark.transform)]
    is_usual = benchmark.mode in (None, "RGB")  # to which every image is converted
    return geometry if is_usual else [*geometry, f"mode {benchmark.mode}"]
