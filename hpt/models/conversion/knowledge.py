"""All that a checkpoint computes with beside its weights, from options, its configuration and a named base."""

from hpt.errors import InputError, check_at_least, check_known
from hpt.models.conversion.facts import GIVEN, Base, Fact, Said, Stated, choose, say
from hpt.models.conversion.images import resizing, resizing_settings
from hpt.models.conversion.parity import ACTIVATIONS, Arithmetic, highest_token
from hpt.models.conversion.shapes import TextShape, VisionShape, check_clip, differences
from hpt.models.conversion.sources import Checkpoint
from hpt.models.processors import pixel_statistics


SHAPES, THE_CODE, ITS_FILES = "shapes of the weights", "OpenAI's and open_clip's code", "its tokenizer's files"
# What weights don't say, and must be said by something
OF_VISION = ("activation", "heads", "layer_norm_eps", "image_size", "image_mean", "image_std", "resizing")
OF_TEXT = ("text_activation", "text_heads", "text_layer_norm_eps", "tokenizer")
# What a comparison of logits can't find to be wrong, for both sides take it from the same place
NOT_COMPARED = (*OF_VISION, *OF_TEXT, "end_token")


def gather(checkpoint: Checkpoint, base: Base | None, stated: Stated) -> Said:
    """The facts [`OF_VISION`] and [`OF_TEXT`], with `end`, the token at which prompts are pooled, and what shapes say.

    Raises:
        InputError: for what isn't said anywhere, can't be, or doesn't fit the checkpoint.
    """
    _check_given(checkpoint, base, stated)
    vision = VisionShape.of_weights(checkpoint.weights)
    own = [_said_by(stated), checkpoint.config.said() if checkpoint.config else {}, _said_by_code(vision)]
    if checkpoint.is_vision_only:
        own = [{name: fact for name, fact in said.items() if name in OF_VISION} for said in own]
    tokenizer = _tokenizer(checkpoint, base, stated)
    said = [*own[:2], _said_by_base(base), tokenizer, own[2]]
    facts = choose(checkpoint.source, OF_VISION + OF_TEXT, said)
    facts |= {"end_token": _end_token(checkpoint, base, facts["tokenizer"])}
    return facts | _said_by_shapes(checkpoint, base, vision)


def check_values(facts: Said, vision: VisionShape, text: TextShape) -> None:
    """Refuse facts that can't be of towers of these shapes."""
    values = {name: fact.value for name, fact in facts.items()}
    for tower, shape in (("", vision), ("text_", text)):
        check_known(f"{tower}activation", values[f"{tower}activation"], ACTIVATIONS)
        name, heads = f"{tower}heads", values[f"{tower}heads"]
        check_at_least(1, **{name: heads})
        if shape.width % heads:
            raise InputError(f"{name} is {heads} ({facts[name].source}), but must divide the width {shape.width}.")
    for name in ("image_mean", "image_std"):
        if len(values[name]) != 3 or (name == "image_std" and min(values[name]) <= 0):
            above = ", above 0" * (name == "image_std")
            raise InputError(f"{name} is {values[name]}, but must have a number for each of three channels{above}.")
    if len(values["tokenizer"]) > text.vocab_size:
        raise InputError(
            f"The tokenizer ({facts['tokenizer'].source}) has {len(values['tokenizer'])} tokens, but the text tower "
            f"knows {text.vocab_size}: give the model's own."
        )


def _check_given(checkpoint: Checkpoint, base: Base | None, stated: Stated) -> None:
    source = checkpoint.source
    if checkpoint.is_vision_only and base is None:
        raise InputError(
            f"{source!r} holds a vision tower alone: give the model that it was made from, whose text tower it goes "
            "with, base=ID (of hpt convert, --base ID)."
        )
    if checkpoint.is_vision_only and stated.text_heads is not None:
        raise InputError(
            f"text_heads is given, but {source!r} holds a vision tower alone: its text tower is the base's."
        )
    if base is None:
        return
    check_clip(f"The base {base.name!r}", base.model)
    pairs = {"vision": VisionShape}
    if not checkpoint.is_vision_only:
        pairs["text"] = TextShape
    for tower, shape in pairs.items():
        if difference := differences(shape.of_config(base.model.config), shape.of_weights(checkpoint.weights)):
            raise InputError(
                f"The base {base.name!r} is of another architecture than {source!r}: its {tower} tower has "
                f"{difference}."
            )


def _said_by(stated: Stated) -> Said:
    return say(
        GIVEN,
        activation=stated.activation,
        text_activation=stated.activation,
        heads=stated.heads,
        text_heads=stated.text_heads,
        image_mean=stated.image_mean and list(stated.image_mean),
        image_std=stated.image_std and list(stated.image_std),
    )


def _said_by_base(base: Base | None) -> Said:
    if base is None:
        return {}
    how, image_processor = Arithmetic.of_config(base.model.config), base.processor.image_processor
    values = {name: value for name, value in vars(how).items() if name != "end_token"}
    mean, std = pixel_statistics(image_processor)
    image_size = base.model.config.vision_config.image_size
    images = say(base.name, image_mean=mean, image_std=std, resizing=resizing_settings(image_processor))
    return images | say(base.name, **values, image_size=image_size)


def _said_by_code(vision: VisionShape) -> Said:
    """What no file says because it is the same in all of them, and how CLIP's own processor resizes."""
    side = vision.grid * vision.patch_size
    code = say(THE_CODE, layer_norm_eps=1e-5, text_layer_norm_eps=1e-5, resizing=resizing(side))
    return code | say(SHAPES, image_size=side)


def _tokenizer(checkpoint: Checkpoint, base: Base | None, stated: Stated) -> Said:
    if stated.tokenizer is not None:
        return say(GIVEN, tokenizer=stated.tokenizer)
    if checkpoint.folder is not None and not checkpoint.is_vision_only:
        tokenizer = _load_tokenizer(checkpoint)
        checkpoint.config.check_tokenizer(tokenizer)
        return say(ITS_FILES, tokenizer=tokenizer)
    return {} if base is None else say(base.name, tokenizer=base.processor.tokenizer)


def _load_tokenizer(checkpoint: Checkpoint):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # over damaged files, tokenizers raise errors of any kind
        raise InputError(
            f"Can't convert {checkpoint.source!r}: its tokenizer can't be loaded ({type(error).__name__}: "
            f"{str(error):.200}). Take a complete copy, or give a tokenizer."
        ) from error


def _end_token(checkpoint: Checkpoint, base: Base | None, tokenizer: Fact) -> Fact:
    """The token at which prompts are pooled, or `None` for the highest of each, as in OpenAI's code."""
    if checkpoint.is_vision_only:
        return Fact("end_token", Arithmetic.of_config(base.model.config).end_token, base.name)
    if checkpoint.config and "end_token" in (said := checkpoint.config.said()):
        return said["end_token"]
    end = tokenizer.value.eos_token_id
    is_highest = end == highest_token(tokenizer.value)
    reason = "pools at the highest token" + ", which is the tokenizer's end" * is_highest
    return Fact("end_token", end if is_highest else None, f"{THE_CODE}, which {reason}")


def _said_by_shapes(checkpoint: Checkpoint, base: Base | None, vision: VisionShape) -> Said:
    values = {
        f"vision_{name}": value for name, value in vars(vision).items() if name not in ("patch_size", "embed_dim")
    }
    facts = say(SHAPES, patch_size=vision.patch_size, embed_dim=vision.embed_dim, **values)
    if checkpoint.is_vision_only:
        return facts | say(base.name, text_tower="the base's", logit_scale=base.model.logit_scale.item())
    text = vars(TextShape.of_weights(checkpoint.weights))
    return facts | say(SHAPES, **{f"text_{name}": value for name, value in text.items() if name != "embed_dim"})
