"""What a model's numbers depend on beside its weights: its configuration, and the tokens of class prompts."""

import hashlib

from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

from hpt.json_files import digest
from hpt.models.classifier import ZeroShotClassifier


# What every configuration has, and those of text generators that many have inherited: no encoder computes with it
NOT_COMPUTED_WITH = {*PreTrainedConfig().to_dict(), *GenerationConfig().to_dict()}
# Words in the names of what acts before training begins, and only in training
OF_THE_START, OF_TRAINING = ("initializer", "init_value", "init_std"), ("dropout", "drop_path", "drop_connect")
SPECIAL_TOKENS = ("eos_token_id", "padding_idx")  # as modules call them


def hash_configuration(classifier: ZeroShotClassifier, training: bool = False) -> str:
    """16 hexadecimal digits that stand for how a model computes with its weights, such as its activations and heads.

    They are the same for a model that is saved and loaded, merged with its adapter, or whose special tokens `Trainer`
    has aligned. Values that are their class's defaults don't count, so that a version of transformers that adds some
    changes nothing.

    Args:
        classifier ([`ZeroShotClassifier`]): Any, a PEFT model's too.
        training (`bool`, *optional*, defaults to `False`): Whether what acts only in training counts, such as dropout.
    """
    ignored = OF_THE_START if training else OF_THE_START + OF_TRAINING
    return digest([_settings(classifier.model.config, ignored), _special_tokens(classifier)])


def hash_prompts(classifier: ZeroShotClassifier) -> str:
    """16 hexadecimal digits that stand for what a model's tokenizer makes of the class prompts."""
    state = hashlib.sha256()
    for name, ids in sorted(classifier.prompt_tokens.items()):
        state.update(f"{name} {tuple(ids.shape)}".encode() + ids.numpy().tobytes())
    return state.hexdigest()[:16]


def _settings(config: PreTrainedConfig, ignored: tuple[str, ...]) -> dict:
    """What a configuration and those within it say that isn't the default of their class."""
    parts = {name: part for name, part in vars(config).items() if isinstance(part, PreTrainedConfig)}
    defaults = type(config)(**{name: part.to_dict() for name, part in parts.items()}).to_dict()
    settings = {"model_type": config.model_type} | {name: _settings(part, ignored) for name, part in parts.items()}
    for name, value in config.to_dict().items():
        counts = name not in parts and name not in NOT_COMPUTED_WITH and not any(word in name for word in ignored)
        if counts and value != defaults.get(name):
            settings[name] = value
    return settings


def _special_tokens(classifier: ZeroShotClassifier) -> list[tuple[str, int]]:
    """The tokens that a model looks for in prompts: its configuration names them also where it looks for none."""
    modules = [vars(module) for module in classifier.model.modules() if not isinstance(module, nn.Embedding)]
    tokens = {(name, module[name]) for module in modules for name in SPECIAL_TOKENS if module.get(name) is not None}
    legacy = (SPECIAL_TOKENS[0], classifier.family.legacy_end)
    if legacy in tokens:  # OpenAI's own CLIPs, until `Trainer` gives them the tokenizer's
        tokens = tokens - {legacy} | {(SPECIAL_TOKENS[0], max(classifier.processor.tokenizer("")["input_ids"]))}
    return sorted(tokens)
