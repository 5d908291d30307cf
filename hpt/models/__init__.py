"""Dual encoders of transformers as classifiers of images in [0, 1], their weights, and LoRA on them."""
