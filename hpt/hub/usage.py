"""How to use a model, in code that runs as it stands: the section of a card that others copy from."""

from hpt.errors import InputError
from hpt.escaping import code, python_literal
from hpt.hub.folder import ModelFolder
from hpt.models.families import POOLS_TO_MAPS, family_by_architecture
from hpt.prompts import DEFAULT_TEMPLATE, list_templates
from hpt.radius import Radius


EXAMPLE_LABELS = ["cat", "dog", "car"]

TEXT = """\
Without hpt; `labels` can be any names:{base_note}

```python
from PIL import Image
{pipeline}{flatten_pipeline}
labels, template = {labels}, {template}
print(classify(Image.open("image.png"), candidate_labels=labels, hypothesis_template=template))
```

As a model, for logits and embeddings:

```python
import torch
from PIL import Image
{imports}

model = {load}{flatten}
processor = {processor}.from_pretrained({model_id})
texts = [{template}.format(label) for label in {labels}]
image = Image.open("image.png")
inputs = processor(text=texts, images=image, return_tensors="pt", padding={padding})
with torch.no_grad():
    outputs = model(**inputs)
print(outputs.logits_per_image, outputs.image_embeds.shape)
```

Attacked, with hpt, which takes images as pixels in [0, 1]:

```python
import torch
{imports}

from hpt import PGD, ZeroShotClassifier

model = {load}
processor = {processor}.from_pretrained({model_id})
labels, template = {labels}, {templates}
classifier = ZeroShotClassifier(model.eval(), processor, labels, template)
images, right = torch.rand(1, 3, {image_size}, {image_size}), torch.tensor([0])
adversarial = PGD(eps={eps}, steps=10)(classifier, images, right)
print(classifier(images), classifier(adversarial))
```"""

PIPELINE = """\
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model={model_id})"""

PIPELINE_OF_ADAPTER = """\
from peft import PeftModel
from transformers import {architecture}, {processor}, pipeline

processor = {processor}.from_pretrained({model_id})
parts = {{"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}}
classify = pipeline("zero-shot-image-classification", model={load}, **parts)"""

FULL_LENGTH = '"max_length", max_length=model.config.text_config.max_position_embeddings'

# Of a tower that pools to maps
FLATTEN = """
tower = {model}.vision_model
tower.pooler = torch.nn.Sequential(tower.pooler, torch.nn.Flatten())  # or it couldn't be projected"""

BASE_NOTE = " {base} stands for the folder of the base, which isn't on the Hub."


def usage(folder: ModelFolder, model_id: str) -> str:
    """Three snippets: a pipeline of transformers, the model itself, and an attack on it by hpt."""
    run, model, adapter = folder.run, folder.model, folder.is_adapter
    family = family_by_architecture(model["architecture"])
    if not model["architecture"].isidentifier():
        raise InputError(f"{folder} names {model['architecture']!r} as the model's class, which can't be one.")
    names = {"model_id": python_literal(model_id), "architecture": model["architecture"]}
    names["load"] = _load_call(folder, names["model_id"])
    names["processor"] = family.processor
    written = str.lower if family.lower_case else str
    given = run["prompt_template"] if run else DEFAULT_TEMPLATE
    templates = list(map(written, list_templates(given)))
    example = {
        "labels": list(map(written, (run and run["data"]["class_names"][:3]) or EXAMPLE_LABELS)),
        "template": templates[0],  # transformers takes a single template
        "templates": templates[0] if isinstance(given, str) else templates,
    }
    texts = {name: python_literal(value) for name, value in example.items()}
    eps = run["settings"].get("attack_eps", "1/255") if run else "1/255"
    pools_to_maps = model.get("vision_tower") in POOLS_TO_MAPS  # which models of earlier versions don't say
    imports = "from transformers import {architecture}, {processor}".format(**names)
    return TEXT.format(
        **names,
        **texts,
        base_note=BASE_NOTE.format(base=code(f"PATH/{model['name']}")) if adapter and model["hub_id"] is None else "",
        pipeline=(PIPELINE_OF_ADAPTER if adapter else PIPELINE).format(**names),
        flatten_pipeline="\nimport torch\n" + FLATTEN.format(model="classify.model") if pools_to_maps else "",
        flatten=FLATTEN.format(model="model") if pools_to_maps else "",
        imports=f"from peft import PeftModel\n{imports}" if adapter else imports,
        padding=FULL_LENGTH if family.pads_to_full_length else "True",
        image_size=python_literal(model["image_size"]),
        eps=Radius(eps) if isinstance(eps, str) else eps,
    )


def _load_call(folder: ModelFolder, model_id: str) -> str:
    """The Python expression that loads the model; its id is a literal already."""
    model = folder.model
    call = f"{model['architecture']}.from_pretrained({model_id})"
    if not folder.is_adapter:
        return call
    revision = f", revision={python_literal(model['revision'])}" if model["hub_id"] and model["revision"] else ""
    place = python_literal(model["hub_id"] or f"PATH/{model['name']}")
    base = f"{model['architecture']}.from_pretrained({place}{revision})"
    return f"PeftModel.from_pretrained({base}, {model_id}).merge_and_unload()"
