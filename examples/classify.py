"""Classify an image by a robust checkpoint, a Hub id or a folder, in plain transformers: hpt needn't be installed.

python examples/classify.py outputs/own_images/robust bird.jpg "blue jay" cardinal
"""

import sys

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor


def main(checkpoint, image, *class_names):
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    prompts = [f"This is a photo of a {name}" for name in class_names]  # by the training's template: see the card
    inputs = processor(text=prompts, images=Image.open(image), return_tensors="pt", padding="max_length")
    with torch.no_grad():
        probabilities = model(**inputs).logits_per_image.softmax(dim=-1)[0]
    for name, probability in zip(class_names, probabilities.tolist(), strict=True):
        print(f"{100 * probability:5.1f} %  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
