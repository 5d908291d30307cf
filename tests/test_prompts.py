"""Prompt templates: what is one, everywhere one is taken."""

import pytest
import torch
from helpers import CLASSES, make_benchmark, make_clip

from hpt import HPTConfig, InputError, ZeroShotClassifier, load_benchmark
from hpt.evaluation.ranking import TransferMatrix
from hpt.prompts import check_templates, make_prompts
from hpt.training.pretraining import PretrainingConfig


BAD = {
    "no place": ("a photo", "The prompt template 'a photo' must have one {} where the class name goes"),
    "escaped": ("a photo {{}}", "and no other braces"),
    "two places": ("a {} next to a {}", "must have one {}"),
    "named": ("a {style} {}", "and no other braces"),
    "open": ("{} {x", "and no other braces"),
    "format": ("a {:>9}", "must have one {}"),
    "none": ([], "There is no prompt template: give at least one"),
    "second": (["a {}", "the"], "template 'the' must have"),
    "number": ([3], "template 3 must have"),
    "nothing": ([None], "template None must have"),
    "half a character": ("a \ud800 {}", "has half a character"),
}
BAD_TEMPLATES = pytest.mark.parametrize(("template", "message"), BAD.values(), ids=BAD.keys())


def test_prompts_are_those_of_all_classes_by_each_template():
    assert check_templates("a {}, here") == ["a {}, here"] and check_templates(("a {}", "{}")) == ["a {}", "{}"]
    assert make_prompts(["a {}", "{}"], ["cat", "{dog}"]) == ["a cat", "a {dog}", "cat", "{dog}"]
    assert make_prompts("a {}", ["cat"]) == ["a cat"]


@BAD_TEMPLATES
@pytest.mark.parametrize("place", ["classifier", "with_classes", "config", "pretraining", "benchmark", "record"])
def test_what_is_no_template_is_refused_before_prompts_are_encoded(tmp_path, place, template, message):
    model, processor = make_clip(0)
    with pytest.raises(InputError, match=message):
        if place == "classifier":
            ZeroShotClassifier(model, processor, CLASSES, template)
        elif place == "with_classes":
            ZeroShotClassifier(model, processor).with_classes(CLASSES, template)
        elif place == "config":
            HPTConfig(str(tmp_path), use_cpu=True, prompt_template=template)
        elif place == "pretraining":
            PretrainingConfig(str(tmp_path), use_cpu=True, caption_templates=template)
        elif place == "benchmark":
            load_benchmark("mine=owner/birds", template=template)
        else:
            load_benchmark("digits", template=template)


def test_several_templates_are_given_to_a_benchmark_as_a_list_or_in_a_text():
    for benchmark in (
        load_benchmark("digits", template=["a {}", "{}, b"]),
        load_benchmark("digits:template=a {}|{}, b"),
    ):
        assert benchmark.template == ["a {}", "{}, b"]
        classifier = ZeroShotClassifier(*make_clip(0)).with_classes(benchmark.class_names, benchmark.template)
        assert classifier.templates == ["a {}", "{}, b"]
    with pytest.raises(InputError, match="template ' the' must have one {}"):
        load_benchmark("digits:template=a {}| the")


def test_a_ranking_takes_several_templates():
    models = {name: ZeroShotClassifier(*make_clip(seed, patch_size=4 + 4 * seed)) for seed, name in enumerate("ab")}
    matrix = TransferMatrix(models, make_benchmark(6, ["a {}", "{}"]), [4 / 255], steps=1)
    matrix.measure()
    rows = matrix.rows()
    assert rows and all(row.templates == ["a {}", "{}"] for row in rows)


def test_a_list_of_one_template_is_that_template():
    model, processor = make_clip(0)
    single = ZeroShotClassifier(model, processor, CLASSES, "a {}").text_embeds()
    assert torch.equal(ZeroShotClassifier(model, processor, CLASSES, ["a {}"]).text_embeds(), single)
